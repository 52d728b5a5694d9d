"""What Ray costs and gains: against the loop in one process, with more workers, and with scoring during sampling.

Plain loop and Ray take turns, iteration by iteration, on the demo's recipe and on the same prompts. Scaling and scoring
are measured with a policy and a reward model that sleep, so that the number of cores doesn't matter.

    python -m branchgrpo.benchmarks.speed.ray_overhead --out build/bench
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ...cluster.on_ray.driver import RayLoop
from ...cluster.run.in_process import InProcessLoop
from ...cluster.run.loop import IterationReport, Loop
from ...proto.recipe import load_recipe, parse_settings
from ...proto.settings import RunSettings
from ..support.report import report_path, write_report

RECIPE = Path(str(files("branchgrpo") / "recipes" / "glyphs.yaml"))


PROMPTS = [f"{i:03d}" for i in range(1000)]


def demo(changes: dict[str, Any]) -> RunSettings:
    """The demo's settings with some sections replaced."""
    return parse_settings({**load_recipe(RECIPE).model_dump(), **changes})


@contextmanager
def on_ray(settings: RunSettings) -> Iterator[RayLoop]:
    """A loop on a Ray cluster that is started for it."""
    with tempfile.TemporaryDirectory() as folder:
        loop = RayLoop(settings, Path(folder), PROMPTS, None)
        try:
            yield loop
        finally:
            loop.close()


def timed(loop: Loop, iteration: int) -> tuple[float, IterationReport]:
    """Seconds of an iteration, and its report."""
    start = time.perf_counter()
    report = loop.iterate(iteration)
    return time.perf_counter() - start, report


def against_plain(rounds: int, console: Console) -> dict[str, Any]:
    """Seconds per iteration on Ray and in one process, and where they go."""
    seconds: dict[str, list[float]] = {"plain": [], "Ray": []}
    phases: dict[str, dict[str, list[float]]] = {"plain": {}, "Ray": {}}
    with on_ray(demo({})) as ray_loop:
        loops: dict[str, Loop] = {"plain": InProcessLoop(demo({"execution": "in_process"}), PROMPTS), "Ray": ray_loop}
        for iteration in range(1, rounds + 2):
            for name, loop in loops.items():
                spent, report = timed(loop, iteration)
                if iteration > 1:  # the first one warms up
                    seconds[name].append(spent)
                    for phase, value in report.seconds.items():
                        phases[name].setdefault(phase, []).append(value)
    table = Table("seconds per iteration", "plain", "Ray", title=f"the demo's recipe, medians of {rounds}")
    table.add_row("all", *(f"{statistics.median(values):.2f}" for values in seconds.values()))
    for phase in ("rollout", "scoring", "waiting", "learning", "publishing"):
        spent_in = (phases[name].get(phase) for name in seconds)
        table.add_row(phase, *("" if values is None else f"{statistics.median(values):.2f}" for values in spent_in))
    console.print(table)
    ratio = statistics.median(r / p for r, p in zip(seconds["Ray"], seconds["plain"], strict=True))
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "phases": {name: {p: statistics.median(v) for p, v in of.items()} for name, of in phases.items()},
        "ratio": ratio,
    }


def sleeping(workers: int, scorer: str) -> RunSettings:
    """A run of sixteen tasks whose forward passes take no core."""
    share = {"cpus": 0.1, "threads": 1}
    return demo(
        {
            "placement": "separate",
            "policy": {
                **demo({}).policy.model_dump(),
                "adapter": "branchgrpo.benchmarks.support.stand_ins:SleepingPolicy",
            },
            "prompts": {**demo({}).prompts.model_dump(), "per_iteration": 16},
            "rollout": {"trees_per_task": 1},
            "rewards": {"constant": {"scorer": f"branchgrpo.benchmarks.support.stand_ins:{scorer}"}},
            "pools": {
                "rollout_workers": {**share, "count": workers},
                "learner": share,
                "rewards": {"constant": share},
            },
        }
    )


def sampling_seconds(workers: int, scorer: str, rounds: int) -> tuple[float, float]:
    """Medians of the seconds of sampling and of a whole iteration."""
    with on_ray(sleeping(workers, scorer)) as loop:
        measured = [timed(loop, iteration) for iteration in range(1, rounds + 2)][1:]
    return (
        statistics.median(report.seconds["rollout"] for _, report in measured),
        statistics.median(seconds for seconds, _ in measured),
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder for on_ray.json.")] = Path("build/bench"),
    rounds: Annotated[int, typer.Option(help="Measured iterations, after one to warm up.")] = 7,
) -> None:
    """Measure the loop on Ray.

    Example: python -m branchgrpo.benchmarks.speed.ray_overhead --out build/bench
    """
    path = report_path(out, "on_ray")
    console = Console()
    plain = against_plain(rounds, console)
    one, _ = sampling_seconds(1, "instant_scorer", 2)
    four, unscored = sampling_seconds(4, "instant_scorer", 3)
    _, scored = sampling_seconds(4, "sleeping_scorer", 3)
    claims = {
        "iteration: Ray / plain": (plain["ratio"], "at most 1.25"),
        "rollout throughput: 4 workers / 1": (one / four, "at least 3.6"),
        "iteration: scored / scored at once": (scored / unscored, "at most 1.05"),
    }
    table = Table("ratio", "measured", "to reach")
    for name, (value, goal) in claims.items():
        table.add_row(name, f"{value:.2f}", goal)
    console.print(table)
    report = {"plain": plain, "ratios": {name: {"measured": v, "to reach": goal} for name, (v, goal) in claims.items()}}
    write_report(path, report)
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
