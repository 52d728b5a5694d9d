"""What Ray costs and gains: against the loop in one process, with more workers, and with scoring during sampling.

The loops in one process and on Ray take turns, iteration by iteration, on the demo's recipe and on the same prompts.
Scaling and scoring are measured with a policy and a reward model that sleep, so the number of cores doesn't matter.

    python -m branchgrpo.benchmarks.speed.ray_overhead --out build/bench
"""

from collections import defaultdict
from statistics import median
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ...cluster.run.in_process import InProcessLoop
from ...cluster.run.loop import Loop
from ..support.demo import PROMPTS, demo, stand_in_run
from ..support.report import OUT, Out, Rounds, report_path, write_report
from ..support.timed_loop import on_ray, timed


def against_one_process(rounds: int, console: Console) -> dict[str, Any]:
    """Seconds per iteration on Ray and in one process, and where they go."""
    seconds: dict[str, list[float]] = {"in process": [], "Ray": []}
    phases: dict[str, defaultdict[str, list[float]]] = {name: defaultdict(list) for name in seconds}
    in_process = InProcessLoop(demo({"execution": "in_process"}), PROMPTS)
    with on_ray(demo({})) as ray_loop:
        loops: dict[str, Loop] = {"in process": in_process, "Ray": ray_loop}
        for iteration in range(1, rounds + 2):
            for name, loop in loops.items():
                spent, report = timed(loop, iteration)
                if iteration > 1:  # the first one warms up
                    seconds[name].append(spent)
                    for phase, value in report.seconds.items():
                        phases[name][phase].append(value)
    table = Table("seconds per iteration", *seconds, title=f"the demo's recipe, medians of {rounds}")
    table.add_row("all", *(f"{median(values):.2f}" for values in seconds.values()))
    for phase in ("rollout", "scoring", "waiting", "learning", "publishing"):
        table.add_row(phase, *(f"{median(own[phase]):.2f}" if phase in own else "" for own in phases.values()))
    console.print(table)
    return {
        "seconds": {name: median(values) for name, values in seconds.items()},
        "phases": {name: {phase: median(values) for phase, values in own.items()} for name, own in phases.items()},
        "ratio": median(ray / alone for ray, alone in zip(seconds["Ray"], seconds["in process"], strict=True)),
    }


def sampling_seconds(workers: int, scorer: str, rounds: int) -> tuple[float, float]:
    """Medians of the seconds of sampling and of a whole iteration, of sixteen tasks that take no core."""
    tasks = {"prompts.per_iteration": 16, "rollout": {"trees_per_task": 1}}
    with on_ray(stand_in_run("SleepingPolicy", {"constant": scorer}, workers, tasks)) as loop:
        measured = [timed(loop, iteration) for iteration in range(1, rounds + 2)][1:]
    return median(report.seconds["rollout"] for _, report in measured), median(seconds for seconds, _ in measured)


def main(out: Out = OUT, rounds: Rounds = 7) -> None:
    """Measure the loop on Ray."""
    path = report_path(out, "on_ray")
    console = Console()
    compared = against_one_process(rounds, console)
    one, _ = sampling_seconds(1, "instant_scorer", 2)
    four, unscored = sampling_seconds(4, "instant_scorer", 3)
    _, scored = sampling_seconds(4, "sleeping_scorer", 3)
    claims = {
        "iteration: Ray / in process": (compared["ratio"], "at most 1.25"),
        "rollout throughput: 4 workers / 1": (one / four, "at least 3.6"),
        "iteration: scored / scored at once": (scored / unscored, "at most 1.05"),
    }
    table = Table("ratio", "measured", "to reach")
    for name, (value, goal) in claims.items():
        table.add_row(name, f"{value:.2f}", goal)
    console.print(table)
    ratios = {name: {"measured": value, "to reach": goal} for name, (value, goal) in claims.items()}
    write_report(path, {"in process": compared, "ratios": ratios})
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
