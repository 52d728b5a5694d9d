"""What it costs to sample in step with one network that ranks share (ZeRO 3): against ranks that hold all of it, and
against separate pools, iteration by iteration in turns.

All have two learner ranks, and learn the same from the same trees. With separate pools there are two workers, too.

    python -m branchgrpo.benchmarks.speed.in_step --out build/bench
"""

from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from ...cluster.on_ray.driver import RayLoop
from ..support.demo import PROMPTS, demo
from ..support.in_turns import compare, table
from ..support.report import OUT, Out, Rounds, report_path, write_report

PROCESS = {"cpus": 0.1, "threads": 1}
"""What each process reserves, so that all runs fit on two cores."""
POOLS = {
    "learner": {**PROCESS, "count": 2},
    "rollout_workers": {**PROCESS, "count": 2},
    "rewards": {"jpeg_compressibility": PROCESS},
}
WAYS: dict[str, dict[str, Any]] = {
    "in step": {"placement": "colocated", "learner.zero_stage": 3},
    "whole copies": {"placement": "colocated", "learner.zero_stage": 2},
    "separate": {"placement": "separate", "learner.zero_stage": 3},
}


def main(
    out: Out = OUT,
    rounds: Rounds = 3,
    trees: Annotated[int, typer.Option(help="Trees of an iteration.")] = 8,
) -> None:
    """Compare iterations of ranks in step with those of other layouts.

    Example: python -m branchgrpo.benchmarks.speed.in_step --rounds 5 --trees 4
    """
    path = report_path(out, "in_step")
    same = {
        "rewards": {"jpeg_compressibility": {}},
        "pools": POOLS,
        "prompts.per_iteration": trees,
        "rollout.trees_per_task": trees // 2,
        "learner.skip_zero_advantage": False,
        "logging": {"tensorboard": False, "samples_every": 0, "trees_every": 0, "trace": False},
    }
    with TemporaryDirectory() as name, ExitStack() as running:
        loops = {}
        for way, own in WAYS.items():
            folder = Path(name) / way.replace(" ", "_")
            folder.mkdir()
            settings = demo({**same, **own, "name": folder.name, "runs": name})
            loops[way] = running.enter_context(closing(RayLoop(settings, folder, PROMPTS, None)))
        found = compare(loops, rounds)
    Console().print(table(found, f"{trees} trees of the demo, two ranks, medians of {rounds}"))
    write_report(path, {"trees": trees, **found})


if __name__ == "__main__":
    typer.run(main)
