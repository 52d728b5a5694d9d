"""Five layouts of the demo's and the shapes' real networks: their order and seconds as planned, and in real runs.

Every process has one thread. All rows are trained, so that all layouts do the same work. Runs take turns; seconds are
those of a clock, so nothing else should run on the machine.

    python -m branchgrpo.benchmarks.scaling.real_layouts
"""

from collections import defaultdict
from statistics import median
from typing import Annotated

import typer
from rich.console import Console

from ...cluster.plan.calibration import device_of
from ...cluster.plan.forecast import forecast
from ...cluster.plan.prices import Prices
from ...cluster.run.prompt_order import training_and_held_out
from ...proto.recipe import SHIPPED, load_recipe
from ..support.report import Rounds
from ..support.timed_loop import running, timed
from .planned_layouts import Comparison, show
from .planned_networks import COMMON_OVERRIDES, RECIPES, calibrated

PAIR = ["placement=separate", "pools.rollout_workers.count=1", "pools.learner.count=1"]
LAYOUTS = {
    "in process": ["execution=in_process"],
    "colocated, 1 rank": ["placement=colocated", "pools.learner.count=1"],
    "colocated, 2 ranks": ["placement=colocated", "pools.learner.count=2"],
    "separate, 1 worker + 1 rank": PAIR,
    "separate, 1 worker + 1 rank, staleness 1": [*PAIR, "staleness=1"],
}


def compare(recipe: str, turns: int, rounds: int, console: Console) -> list[Comparison]:
    """Planned seconds of an iteration, and medians of `rounds` in each of `turns` runs, after one to warm up and
    before one that samples nothing ahead."""
    own = [*COMMON_OVERRIDES, *RECIPES[recipe], "learner.skip_zero_advantage=false", f"iterations={rounds + 2}"]
    every = {name: load_recipe(SHIPPED / f"{recipe}.yaml", [*own, *changes]) for name, changes in LAYOUTS.items()}
    calibration = calibrated(every["in process"])
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        for name, settings in every.items():
            with running(settings, training_and_held_out(settings)[0]) as loop:
                taken = [timed(loop, number)[0] for number in range(1, rounds + 2)][1:]
            console.print(f"{name}: {', '.join(f'{one:.2f}' for one in taken)} s", highlight=False)
            seconds[name] += taken
    device = device_of(calibration), calibration
    planned = {name: forecast(settings, Prices.of(settings, device)).seconds for name, settings in every.items()}
    return [Comparison(name, planned[name], median(seconds[name])) for name in every]


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="glyphs, shapes. Default: both.")] = None,
    turns: Annotated[int, typer.Option(help="Runs of each layout.")] = 2,
    rounds: Rounds = 3,
) -> None:
    """Compare planned seconds with real ones.

    Example: python -m branchgrpo.benchmarks.scaling.real_layouts glyphs --turns 3
    """
    console = Console(width=120)
    for recipe in recipes or RECIPES:
        compared = compare(recipe, turns, rounds, console)
        show(compared, f"{recipe}: medians of {turns * rounds}", console)


if __name__ == "__main__":
    typer.run(main)
