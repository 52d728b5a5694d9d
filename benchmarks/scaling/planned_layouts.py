"""Five layouts of one recipe: their order and seconds as planned, and in real runs with workers that sleep.

python -m branchgrpo.benchmarks.scaling.planned_layouts
"""

from dataclasses import dataclass

import typer
from rich.console import Console
from rich.table import Table

from ...cluster.plan.costs import Costs
from ...cluster.plan.layouts import Layout, balance_of, layouts, plan
from ...cluster.plan.rows import learner_rows
from ...proto.settings import RunSettings
from ..support.report import Rounds
from ..support.stand_ins import RowPolicy
from .validation import TOLERANCE, Setting, real_seconds

DEVICES = 4
"""Processes that sample or learn."""
SETTING = Setting("layouts", "counting_scorer", learn_row=RowPolicy.learner_row_seconds)


@dataclass(frozen=True)
class Comparison:
    """Seconds of an iteration, as planned and in a real run."""

    layout: Layout
    planned: float
    real: float

    @property
    def ratio(self) -> float:
        return self.planned / self.real


def five_layouts(settings: RunSettings, costs: Costs) -> list[tuple[Layout, float, RunSettings]]:
    """The best five, from the fastest, with their seconds and settings."""
    candidates = list(layouts(settings, DEVICES, balance_of(settings, costs, learner_rows(settings))))
    made = plan(settings, candidates, lambda layout: costs, resource=None)
    return [(own.layout, own.seconds, own.settings) for own in made.best]


def compare(rounds: int, console: Console) -> list[Comparison]:
    """Run all five, from the fastest planned to the slowest."""
    compared = []
    for layout, planned, settings in five_layouts(SETTING.recipe(1, rounds + 1), SETTING.costs):
        compared.append(Comparison(layout, planned, real_seconds(settings, layout.workers, rounds)))
        console.print(compared[-1], highlight=False)
    return compared


def main(rounds: Rounds = 3) -> None:
    """Compare planned layouts with real runs.

    Example: python -m branchgrpo.benchmarks.scaling.planned_layouts --rounds 5
    """
    console = Console()
    compared = compare(rounds, console)
    table = Table("layout", "planned, s", "real, s", "ratio", title=f"medians of {rounds}")
    for own in compared:
        seconds = (f"{own.planned:.2f}", f"{own.real:.2f}", f"{own.ratio:.2f}")
        table.add_row(own.layout.text, *seconds)
    console.print(table)
    real = [own.real for own in compared]
    worst = max(abs(1 - own.ratio) for own in compared)
    order = "the planned order" if real == sorted(real) else "ANOTHER order"
    verdict = "within" if worst <= TOLERANCE else "NOT within"
    console.print(f"real runs have {order}; largest difference {worst:.1%}: {verdict} {TOLERANCE:.0%}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
