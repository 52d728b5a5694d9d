"""Real runs with workers that sleep, compared with simulations of the same recipes.

python -m branchgrpo.benchmarks.scaling.validation
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ...cluster.plan.costs import Cluster, Costs
from ...cluster.plan.simulation import simulate
from ...proto.settings import RunSettings
from ..support.demo import stand_in_run
from ..support.report import Rounds
from ..support.stand_ins import PICTURE_SECONDS, RowPolicy
from ..support.timed_loop import on_ray, timed

WORKERS = (1, 2, 4)
TOLERANCE = 0.15
"""Maximum relative difference between a simulated and a real iteration."""


@dataclass(frozen=True)
class Setting:
    """A recipe with stand-ins, and what it costs besides forward passes."""

    name: str
    scorer: str
    changes: dict[str, Any] = field(default_factory=dict)
    score_picture: float = 0.0
    learn_row: float = 0.0

    def recipe(self, workers: int, iterations: int) -> RunSettings:
        """Eight trees with 16 leaves in 6 steps, a tree per task, in chunks of 8 rows: two parts for each tree."""
        reward = "counting" if self.learn_row else "constant"
        sections = {
            "name": "stand-ins",
            "iterations": iterations,
            "prompts.per_iteration": 8,
            "schedule": {"steps": 6, "splits": {0: 2, 1: 2, 2: 2, 3: 2}, "eta": 0.7},
            "rollout": {"trees_per_task": 1, "max_batch_rows": 8},
            # Few micro-batches: what the learner computes beside its sleep is not in the simulation.
            "learner": {"window_trees": 2, "rows_per_micro_batch": 64, "zero_stage": 0},
        }
        return stand_in_run("RowPolicy", {reward: self.scorer}, workers, {**sections, **self.changes})

    @property
    def costs(self) -> Costs:
        """What the stand-ins of this setting take."""
        return Costs(
            forward=RowPolicy.forward_seconds,
            forward_row=RowPolicy.row_seconds,
            score_picture=self.score_picture,
            learn_row=self.learn_row,
        )


SETTINGS = (
    Setting("rollouts", "instant_scorer"),
    Setting("rewards", "picture_scorer", score_picture=PICTURE_SECONDS),
    Setting("learner", "counting_scorer", learn_row=RowPolicy.learner_row_seconds),
    Setting("learner, staleness 1", "counting_scorer", {"staleness": 1}, learn_row=RowPolicy.learner_row_seconds),
)
"""What limits a run with four workers: each by another part. Without an advantage the learner has nothing to do."""


@dataclass(frozen=True)
class Comparison:
    """Seconds per iteration, real and simulated."""

    setting: str
    workers: int
    real: float
    simulated: float

    @property
    def ratio(self) -> float:
        """Simulated seconds over real ones."""
        return self.simulated / self.real


def compare(setting: Setting, workers: tuple[int, ...] = WORKERS, rounds: int = 3) -> Iterator[Comparison]:
    """Medians of `rounds` iterations, after one to warm up, of a run for each number of workers."""
    for count in workers:
        recipe = setting.recipe(count, rounds + 1)
        real = real_seconds(recipe, rounds)
        simulated = simulate(recipe, setting.costs, Cluster(count, ranks=1, replicas=1), rounds + 1).seconds
        yield Comparison(setting.name, count, real, statistics.median(simulated[1:]))


def real_seconds(recipe: RunSettings, rounds: int) -> float:
    """The median of `rounds` iterations of a run, after one to warm up and, with staleness, before one that samples
    nothing ahead."""
    with on_ray(recipe) as loop:
        seconds = [timed(loop, iteration)[0] for iteration in range(1, rounds + 2)]
    return statistics.median(seconds[1:])


def check(console: Console, rounds: int) -> list[Comparison]:
    """All settings with 1, 2 and 4 workers, as a table."""
    table = Table("limited by", "workers", "real, s", "simulated, s", "ratio", title=f"medians of {rounds}")
    compared = []
    for c in (comparison for setting in SETTINGS for comparison in compare(setting, WORKERS, rounds)):
        console.print(f"{c.setting}, {c.workers} workers: {c.ratio:.2f}", highlight=False)
        compared.append(c)
        table.add_row(c.setting, str(c.workers), f"{c.real:.2f}", f"{c.simulated:.2f}", f"{c.ratio:.2f}")
    console.print(table)
    worst = max(abs(1 - c.ratio) for c in compared)
    verdict = "within" if worst <= TOLERANCE else "NOT within"
    console.print(f"largest difference {worst:.1%}: {verdict} {TOLERANCE:.0%}", highlight=False)
    return compared


def main(rounds: Rounds = 3) -> None:
    """Compare simulated runs with real ones.

    Example: python -m branchgrpo.benchmarks.scaling.validation --rounds 5
    """
    check(Console(), rounds)


if __name__ == "__main__":
    typer.run(main)
