"""Five layouts of one recipe: their order and seconds as planned, and in real runs with workers that sleep.

python -m branchgrpo.benchmarks.scaling.planned_layouts
"""

from collections.abc import Sequence
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

    layout: str
    planned: float
    real: float

    @property
    def ratio(self) -> float:
        """Planned seconds over real ones."""
        return self.planned / self.real


def five_layouts(settings: RunSettings, costs: Costs) -> list[tuple[Layout, float, RunSettings]]:
    """The best five, from the fastest, with their seconds and settings."""
    candidates = list(layouts(settings, DEVICES, balance_of(settings, costs, learner_rows(settings))))
    made = plan(settings, candidates, lambda layout: costs, resource=None)
    return [(own.layout, own.seconds, own.settings) for own in made.best]


def compare(rounds: int, console: Console) -> list[Comparison]:
    """Run all five."""
    compared = []
    for layout, planned, settings in five_layouts(SETTING.recipe(1, rounds + 1), SETTING.costs):
        compared.append(Comparison(layout.text, planned, real_seconds(settings, rounds)))
        console.print(compared[-1], highlight=False)
    return compared


def show(compared: Sequence[Comparison], title: str, console: Console) -> None:
    """Print a table, from the fastest layout as planned to the slowest, and whether real runs are like it."""
    compared = sorted(compared, key=lambda own: own.planned)
    real = sorted(own.real for own in compared)
    table = Table("", "layout", "planned, s", "real, s", "ratio", "place in real runs", title=title)
    for place, own in enumerate(compared, start=1):
        seconds = (f"{own.planned:.2f}", f"{own.real:.2f}", f"{own.ratio:.2f}")
        table.add_row(str(place), own.layout, *seconds, str(real.index(own.real) + 1))
    console.print(table)
    worst = max(abs(1 - own.ratio) for own in compared)
    order = "the planned order" if [own.real for own in compared] == real else "ANOTHER order"
    verdict = "within" if worst <= TOLERANCE else "NOT within"
    console.print(f"real runs have {order}; largest difference {worst:.1%}: {verdict} {TOLERANCE:.0%}", highlight=False)


def main(rounds: Rounds = 3) -> None:
    """Compare planned layouts with real runs.

    Example: python -m branchgrpo.benchmarks.scaling.planned_layouts --rounds 5
    """
    console = Console()
    show(compare(rounds, console), f"medians of {rounds}", console)


if __name__ == "__main__":
    typer.run(main)
