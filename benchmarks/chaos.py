"""Faults at seeded random moments of real runs on a cluster of three nodes: what each costs, and what it leaves.

Every run is checked to finish with the same weights and the same figures of every iteration as one in a single process
without faults, and to leave no process, no Serve application and no shared memory. Its name has unusual characters, its
controller must keep its port, and `branchgrpo monitor` follows it to its end if Prometheus is installed.

    python -m branchgrpo.benchmarks.chaos --faults 42 --seed 0 --out build/bench
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import typer
from rich.console import Console
from rich.table import Table

from ..cluster.on_ray.names import application_name
from ..cluster.on_ray.run_address import RunAddress
from ..cluster.run.folder import RunFolder
from ..proto.errors import RunFailed
from .support.faults import FOLDER, MISTAKES, PASSING_STATUSES
from .support.local_cluster import Nodes, free_port, title_of
from .support.report import report_path, write_report

RECIPE = Path(str(files("branchgrpo") / "recipes" / "glyphs.yaml"))
FAULTS_PER_RUN = 7
ITERATIONS_PER_FAULT = 4
"""One before it, the one that it hits, and those after which a fault that comes in two looks again."""
RECOVERY_SECONDS = 400
"""A run that has not gone on after so long has failed."""
DISK_BYTES = 512 * 2**20
LASTS = {"disk": 4.0}
"""Seconds that a fault lasts which doesn't end by itself."""
OWN_FIGURES = ("started", "seconds", "phase_seconds", "scoring_hidden", "first_score")
"""Figures of an iteration that tell of time, and so differ between runs."""
ODD_NAME = "run {} [1]+lr=3"
CONTROLLER = ("Controller", "controller-")
"""Titles of the process: idle, and at work."""
SMALL = {"cpus": 1, "threads": 1}


@dataclass
class Run:
    """A run as a separate process, which is submitted again when it is killed."""

    name: str
    folder: Path
    nodes: Nodes
    command: list[str]
    port: int
    """Port of the controller's HTTP server."""
    log: Path
    driver: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.submit()

    def submit(self) -> None:
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            )

    def on_cluster(self, *arguments: str) -> str:
        """The output of a `branchgrpo` command about this run. Raises RunFailed if it fails."""
        command = [sys.executable, "-m", "branchgrpo", *arguments, "--address", self.nodes.address]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, check=False
        )
        if done.returncode:
            raise RunFailed(f"{self.name}: {' '.join(arguments)}: {done.stderr[-3000:]}")
        return done.stdout

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold its driver within the block, for a command that takes longer than the iterations that are left."""
        self.driver.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.driver.send_signal(signal.SIGCONT)

    def workers(self) -> int:
        """Rollout workers that it has, or that start. Raises RunFailed if its controller hasn't its own port."""
        url = RunAddress.read(self.folder).http or ""
        if not url.endswith(f":{self.port}"):
            raise RunFailed(f"{self.name}: the controller is at {url}; its port is {self.port}")
        with urllib.request.urlopen(f"{url}/status", timeout=30) as answer:
            return len(json.load(answer)["pools"]["rollout_workers"])

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have `branchgrpo monitor` follow the run, which must end within the block, where Prometheus is installed.

        Raises RunFailed if it doesn't end with the run.
        """
        if shutil.which("prometheus") is None:
            yield
            return
        command = [sys.executable, "-m", "branchgrpo", "monitor", str(self.folder), "--port", str(free_port())]
        with self.log.with_suffix(".monitor").open("w+") as log:
            monitor = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                yield
                ended = monitor.wait(60)
            finally:
                monitor.terminate()
            log.seek(0)
            if ended or "the run has ended" not in (told := log.read()):
                raise RunFailed(f"{self.name}: monitor has ended with {ended}: {told}")

    def lines(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            return RunFolder(self.folder).lines("metrics")
        return []

    @property
    def done(self) -> int:
        return max((int(line["iteration"]) for line in self.lines()), default=0)

    def until(self, reached: Callable[[], bool], what: str, seconds: float = RECOVERY_SECONDS) -> None:
        """Wait until it is so. Raises RunFailed, with the end of the log, if the run ends before or takes too long."""
        limit = time.monotonic() + seconds
        while not reached():
            if self.driver.poll() is not None or time.monotonic() > limit:
                raise RunFailed(
                    f"{self.name}: {what}: exit status {self.driver.poll()}\n{self.log.read_text()[-3000:]}"
                )
            time.sleep(0.02)


@dataclass
class Chaos:
    """Brings about the faults."""

    nodes: Nodes
    faults: Path
    disk: Path | None
    chance: random.Random
    start: Callable[..., Run]
    """Starts a run of this name, with other settings if some are given."""
    struck: tuple[int, float] = (0, 0.0)
    """Iterations that were done when the last fault struck, and when that was, in Unix seconds."""

    def strike(self, run: Run, kind: str) -> None:
        """Bring a fault about."""
        self._note(run)
        self.kinds()[kind](run)

    def _note(self, run: Run) -> None:
        """Note that a fault strikes now: some have to wait for their moment."""
        self.struck = run.done, time.time()

    def kinds(self) -> dict[str, Callable[[Run], None]]:
        """Fault -> what brings it about."""
        kinds: dict[str, Callable[[Run], None]] = {
            "rollout worker killed": lambda run: self._signal(run, "RolloutActor", signal.SIGKILL),
            "rollout worker hangs": lambda run: self._signal(run, "RolloutActor", signal.SIGSTOP),
            "reward replica killed": lambda run: self._signal(
                run, f"ServeReplica:{application_name(run.name)}:ocr", signal.SIGKILL
            ),
            "learner rank killed": lambda run: self._signal(run, "LearnerActor", signal.SIGKILL),
            "controller killed": lambda run: self._signal(run, CONTROLLER, signal.SIGKILL),
            "worker node killed": lambda run: self.nodes.kill_one(self.chance),
            "scaled, then controller killed": self._scale_and_kill,
            "driver killed": self._kill_driver,
            "driver killed, cluster full": self._kill_driver_on_a_full_cluster,
            "checkpoint truncated": self._truncate,
            **{f"reward: {name}": lambda run, name=name: (self.faults / name).touch() for name in PASSING_STATUSES},  # type: ignore[misc]
            **{f"reward: {name}": lambda run, name=name: self._mistake(run, name) for name in MISTAKES},  # type: ignore[misc]
        }
        return {**kinds, "disk full": self._fill_disk} if self.disk else kinds

    def _signal(self, run: Run, title: str | tuple[str, ...], signum: signal.Signals) -> None:
        limit = time.monotonic() + RECOVERY_SECONDS
        while not (found := self.nodes.processes(title)):
            if time.monotonic() > limit:
                raise RunFailed(f"there is no process {title}")
            time.sleep(0.05)
        self._note(run)
        self.chance.choice(sorted(found, key=lambda process: process.pid)).send_signal(signum)

    def _kill_driver(self, run: Run) -> None:
        run.driver.kill()
        run.driver.wait()
        run.submit()

    def _scale_and_kill(self, run: Run) -> None:
        """The run has three workers then, also when it has been set up again."""
        with run.held():
            run.on_cluster("scale", run.name, "--rollout-workers", "3")
        done = run.done
        run.until(lambda: run.done > done, "an iteration with more workers")
        self._signal(run, CONTROLLER, signal.SIGKILL)
        killed = time.time()
        run.until(lambda: any(line["started"] > killed for line in run.lines()), "after the controller was killed")
        if (workers := run.workers()) != 3:
            raise RunFailed(f"{run.name} has {workers} rollout workers; it was scaled to 3")

    def _kill_driver_on_a_full_cluster(self, run: Run) -> None:
        """The reward models of another run that was killed, and the run's own, take all places there are."""
        with run.held():
            orphan = self.start(f"orphan {len(run.lines())}", "pools.rollout_workers.count=1")
            orphan.until(lambda: orphan.done >= 1, "the first iteration")
            orphan.driver.kill()
            orphan.driver.wait()
            if application_name(orphan.name) not in run.on_cluster("clean", str(orphan.folder.parent)):
                raise RunFailed(f"clean doesn't list what {orphan.name} has left")
        self._note(run)
        self._kill_driver(run)
        run.until(lambda: run.done > self.struck[0], "after the driver was killed")
        with run.held():
            run.on_cluster("clean", str(orphan.folder.parent), "--yes")
            check_gone(self.nodes, orphan.name, others=True)
        shutil.rmtree(orphan.folder)

    def _mistake(self, run: Run, name: str) -> None:
        """It ends the run, which continues when it is submitted again."""
        (self.faults / name).touch()
        ended = run.driver.wait(RECOVERY_SECONDS)
        if ended != 1 or "reward model 'ocr' gave no score" not in (told := run.log.read_text()):
            raise RunFailed(f"{run.name} has ended with {ended} by a reward's mistake: {told[-3000:]}")
        run.submit()

    def _truncate(self, run: Run) -> None:
        """Cut the newest checkpoint short, then lose the controller, so that the checkpoint is wanted."""
        folder = RunFolder(run.folder)
        run.until(lambda: len(folder.checkpoints()) > 1, "two checkpoints")
        newest = folder.checkpoint(folder.done)
        file = self.chance.choice(sorted(path for path in newest.rglob("*.*t*") if path.stat().st_size > 1))
        os.truncate(file, file.stat().st_size // 2)
        self._signal(run, CONTROLLER, signal.SIGKILL)

    def _fill_disk(self, run: Run) -> None:
        assert self.disk
        filler = self.disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        self._note(run)
        time.sleep(LASTS["disk"])
        filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk that is soon full, or None where none can be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    folder.mkdir()
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def overrides(name: str, runs: Path, iterations: int, port: int) -> list[str]:
    """The demo's recipe as a short run with separate processes on every node."""
    pool = ",".join(f"{key}: {value}" for key, value in SMALL.items())
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
        "rewards.ocr.scorer=branchgrpo.benchmarks.support.faults:troubled_ocr",
        "rewards.ocr_exact.scorer=branchgrpo.benchmarks.support.faults:troubled_ocr",
    ]


def figures(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The figures of every iteration except its times, and the last weights."""
    run = RunFolder(folder)
    lines = [{key: value for key, value in line.items() if key not in OWN_FIGURES} for line in run.lines("metrics")]
    return lines, safetensors.torch.load_file(run.newest_checkpoint() / "weights.safetensors")


def check_same(run: Run, expected: Path, iterations: int) -> None:
    """Raises RunFailed unless the run has come to the same as the one in `expected`."""
    (lines, weights), (true_lines, true_weights) = figures(run.folder), figures(expected)
    if [line["iteration"] for line in lines] != list(range(1, iterations + 1)):
        raise RunFailed(f"{run.name}: iterations are {[line['iteration'] for line in lines]}")
    for line, true in zip(lines, true_lines, strict=True):
        if different := [key for key in true if line[key] != true[key]]:
            raise RunFailed(f"{run.name}: iteration {line['iteration']} has other {different}")
    if any(not torch.equal(weights[name], true_weights[name]) for name in true_weights):
        raise RunFailed(f"{run.name}: other weights")


def check_gone(nodes: Nodes, name: str, others: bool = False) -> None:
    """Raises RunFailed if a run that has ended has left a process or a Serve replica; with `others` going on, which
    have processes of the same titles, a Serve replica."""
    titles = [
        f"ServeReplica:{application_name(name)}",
        *(() if others else ("RolloutActor", "LearnerActor", CONTROLLER)),
    ]
    limit = time.monotonic() + 30
    while left := [title_of(process) for title in titles for process in nodes.processes(title)]:
        if time.monotonic() > limit:
            raise RunFailed(f"{name} has left {left}")
        time.sleep(0.2)


def chaotic(run: Run, plan: list[str], chaos: Chaos, console: Console) -> list[tuple[str, float]]:
    """Bring the planned faults about, each once the run has recovered from the one before; returns what each cost.

    That is the time from the fault to the end of the iteration that it hit, whichever time it was made.
    """
    costs = []
    for kind in plan:
        typical = statistics.median(line["seconds"] for line in run.lines())
        time.sleep(chaos.chance.uniform(0, typical))
        chaos.strike(run, kind)
        before, hit = chaos.struck
        run.until(
            lambda before=before, hit=hit: any(  # type: ignore[misc]
                line["iteration"] == before + 1 and line["started"] + line["seconds"] > hit for line in run.lines()
            ),
            f"after '{kind}' in iteration {before + 1}",
        )
        costs.append((kind, time.time() - hit))
        console.print(f"{run.name}: {kind} in iteration {before + 1}: {costs[-1][1]:.1f} s", highlight=False)
    return costs


def plans(kinds: list[str], faults: int, chance: random.Random) -> list[list[str]]:
    """The faults of each run: every kind as often as any other, in random order."""
    every = [kind for _ in range(-(-faults // len(kinds))) for kind in chance.sample(kinds, len(kinds))][:faults]
    return [every[first : first + FAULTS_PER_RUN] for first in range(0, faults, FAULTS_PER_RUN)]


def main(
    out: Annotated[Path, typer.Option(help="Folder for chaos.json.")] = Path("build/bench"),
    faults: Annotated[int, typer.Option(help="Number of faults.")] = 42,
    seed: Annotated[int, typer.Option(help="Seed of their order, moments and victims.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Kinds of faults to choose from. Default: all.")] = None,
) -> None:
    """Bring faults about in real runs, and check that they change nothing but the time.

    Example: python -m branchgrpo.benchmarks.chaos --faults 42 --seed 0
    """
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
                command, port = [sys.executable, "-m", "branchgrpo", "train", str(RECIPE)], free_port()
                return Run(
                    name,
                    runs / name,
                    nodes,
                    [*command, "--address", nodes.address, *overrides(name, runs, iterations, port), *changes],
                    port,
                    Path(temporary, f"{name}.log"),
                )

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
                disturbed.until(lambda now=disturbed: now.done >= 1, "the first iteration")  # type: ignore[misc]
                with disturbed.watched():
                    costs += chaotic(disturbed, plan, chaos, console)
                    limit = time.monotonic() + RECOVERY_SECONDS
                    while disturbed.driver.poll() is None and time.monotonic() < limit:
                        time.sleep(0.1)
                if disturbed.driver.poll() != 0:
                    raise RunFailed(f"{disturbed.name} hasn't ended well:\n{disturbed.log.read_text()[-3000:]}")
                check_same(disturbed, peaceful.folder, iterations)
                check_gone(nodes, disturbed.name)
                iteration_seconds += [line["seconds"] for line in disturbed.lines()]
                console.print(f"{disturbed.name}: the same weights and figures, nothing left", style="green")
                shutil.rmtree(disturbed.folder)
        finally:
            nodes.close()
    if left := set(os.listdir("/dev/shm")) - shared_memory:
        raise RunFailed(f"shared memory is left: {sorted(left)}")
    table = Table(
        "fault", "times", "median s", "most s", title="from the fault to the end of the iteration that it hit"
    )
    by_kind = {kind: [seconds for name, seconds in costs if name == kind] for kind in kinds}
    report = {
        kind: {"times": len(spent), "median": statistics.median(spent), "most": max(spent)}
        for kind, spent in by_kind.items()
        if spent
    }
    for kind, row in report.items():
        table.add_row(kind, str(row["times"]), f"{row['median']:.1f}", f"{row['most']:.1f}")
    console.print(table)
    iteration = statistics.median(iteration_seconds)
    console.print(f"{len(costs)} faults; an iteration takes {iteration:.1f} s (median)")
    write_report(path, {"faults": len(costs), "seed": seed, "iteration": iteration, "kinds": report})
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
