"""Faults at seeded random moments of real runs on a cluster of three nodes: what each costs, and what it leaves.

Every run is checked to finish with the same weights and the same figures of every iteration as one in a single process
without faults, and to leave no process, no Serve application and no shared memory. Its name has unusual characters, its
controller must keep its port, and `branchgrpo monitor` follows it to its end if Prometheus is installed.

    python -m branchgrpo.benchmarks.chaos --faults 42 --seed 0 --out build/bench
"""

import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ...proto.errors import RunFailed
from ..support.local_cluster import Nodes, free_port
from ..support.report import OUT, Out, report_path, write_report
from .faults import Chaos, small_disk
from .outcome import check_gone, check_same
from .run import BRANCHGRPO, RECOVERY_SECONDS, Run
from .troubled_ocr import FOLDER

FAULTS_PER_RUN = 7
ITERATIONS_PER_FAULT = 4
"""One before it, the one that it hits, and those after which a fault that comes in two looks again."""
ODD_NAME = "run {} [1]+lr=3"


def overrides(name: str, runs: Path, iterations: int, port: int) -> list[str]:
    """The demo's recipe as a short run with separate processes on every node."""
    pool = "cpus: 1, threads: 1"
    return [
        f"name={name}",
        f"runs={runs}",
        f"iterations={iterations}",
        "resume=auto",
        "threads=1",
        "placement=separate",
        "staleness=0",
        "prompts.per_iteration=4",
        "schedule.splits={0: 2, 3: 2}",
        "rollout.trees_per_task=1",
        "learner.window_trees=2",
        "evaluation.prompts=4",
        "checkpoint.every=1",
        "checkpoint.disk_timeout_seconds=120",
        "logging.samples_every=2",
        f"logging.metrics_port={port}",
        f"pools.rollout_workers={{{pool}, count: 2, resources: {{work: 1}}}}",
        f"pools.learner={{{pool}, resources: {{work: 1}}}}",
        f"pools.rewards.ocr={{{pool}, deterministic: true, resources: {{head: 1}}}}",
        "pools.heartbeat_timeout_seconds=20",
        "pools.placement_timeout_seconds=120",
        "rewards.ocr.scorer=branchgrpo.benchmarks.chaos.troubled_ocr:troubled_ocr",
        "rewards.ocr_exact.scorer=branchgrpo.benchmarks.chaos.troubled_ocr:troubled_ocr",
    ]


def survive(run: Run, plan: list[str], chaos: Chaos, console: Console) -> list[tuple[str, float]]:
    """Bring the planned faults about, each once the run has recovered from the one before; returns what each cost.

    That is the time from the fault to the end of the iteration that it hit, whichever time it was made. Raises
    RunFailed unless the run comes to its end.
    """
    costs = []
    run.until(lambda: run.done >= 1, "the first iteration")
    with run.watched():
        for kind in plan:
            typical = statistics.median(line["seconds"] for line in run.lines())
            time.sleep(chaos.chance.uniform(0, typical))
            chaos.strike(run, kind)
            before, hit = chaos.struck
            run.until(lambda since=chaos.struck: run.made_again(*since), f"after '{kind}' in iteration {before + 1}")  # type: ignore[misc]
            costs.append((kind, time.time() - hit))
            console.print(f"{run.name}: {kind} in iteration {before + 1}: {costs[-1][1]:.1f} s", highlight=False)
        run.until(lambda: run.driver.poll() is not None, "the end")
        if run.driver.poll():
            raise RunFailed(f"{run.name} hasn't ended well:\n{run.log.read_text()[-3000:]}")
    return costs


def plans(kinds: list[str], faults: int, chance: random.Random) -> list[list[str]]:
    """The faults of each run: every kind as often as any other, in random order."""
    every = [kind for _ in range(-(-faults // len(kinds))) for kind in chance.sample(kinds, len(kinds))][:faults]
    return [every[first : first + FAULTS_PER_RUN] for first in range(0, faults, FAULTS_PER_RUN)]


def main(
    out: Out = OUT,
    faults: Annotated[int, typer.Option(help="Number of faults.")] = 42,
    seed: Annotated[int, typer.Option(help="Seed of their order, moments and victims.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Kinds of faults to choose from. Default: all.")] = None,
) -> None:
    """Bring faults about in real runs, and check that they change nothing but the time."""
    path = report_path(out, "chaos")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left of this either
    console, chance = Console(), random.Random(seed)
    shared_memory = set(os.listdir("/dev/shm"))
    iterations = ITERATIONS_PER_FAULT * min(faults, FAULTS_PER_RUN) + 2
    with tempfile.TemporaryDirectory() as temporary, small_disk(Path(temporary, "disk")) as disk:
        runs, faulty = disk or Path(temporary), Path(temporary, "faults")
        faulty.mkdir()
        nodes = Nodes({FOLDER: str(faulty)}, places=2)  # for the reward models of two runs
        try:

            def run(name: str, *changes: str) -> Run:
                port = free_port()
                command = [*BRANCHGRPO, "train", "glyphs", "--address", nodes.address]
                command += [*overrides(name, runs, iterations, port), *changes]
                return Run(name, runs / name, nodes, command, port, Path(temporary, f"{name}.log"))

            peaceful = run("peaceful", "execution=in_process")
            peaceful.until(lambda: (runs / "peaceful" / "summary.json").exists(), "the end", 4 * RECOVERY_SECONDS)
            peaceful.driver.wait()
            chaos = Chaos(nodes, faulty, disk, chance, run)
            if not disk:
                console.print("no disk can be mounted here, so that none gets full", style="yellow")
            kinds = only or list(chaos.kinds())
            costs, iteration_seconds = list[tuple[str, float]](), list[float]()
            for number, plan in enumerate(plans(kinds, faults, chance)):
                disturbed = run(ODD_NAME.format(number))
                costs += survive(disturbed, plan, chaos, console)
                check_same(disturbed, peaceful.folder, iterations)
                check_gone(nodes, disturbed.name)
                iteration_seconds += [line["seconds"] for line in disturbed.lines()]
                console.print(f"{disturbed.name}: the same weights and figures, nothing left", style="green")
                shutil.rmtree(disturbed.folder)
        finally:
            nodes.close()
    if left := set(os.listdir("/dev/shm")) - shared_memory:
        raise RunFailed(f"shared memory is left: {sorted(left)}")
    title = "from the fault to the end of the iteration that it hit"
    table, report = Table("fault", "times", "median s", "most s", title=title), {}
    for kind in kinds:
        if spent := [seconds for name, seconds in costs if name == kind]:
            report[kind] = {"times": len(spent), "median": statistics.median(spent), "most": max(spent)}
            table.add_row(kind, str(len(spent)), f"{statistics.median(spent):.1f}", f"{max(spent):.1f}")
    console.print(table)
    iteration = statistics.median(iteration_seconds)
    console.print(f"{len(costs)} faults; an iteration takes {iteration:.1f} s (median)")
    write_report(path, {"faults": len(costs), "seed": seed, "iteration": iteration, "kinds": report})
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
