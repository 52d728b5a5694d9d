"""The demo's and the shapes' real networks: CPU seconds of an iteration as planned, and in real runs.

python -m branchgrpo.benchmarks.scaling.planned_networks

CPU seconds hold on a busy machine too. One thread does everything, and calibrates by CPU seconds.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from ...cluster.commands.calibrate import calibration_batches
from ...cluster.plan.calibration import Calibration, device_of
from ...cluster.plan.crowding import measure_slowdown
from ...cluster.plan.flops import count_work
from ...cluster.plan.forecast import forecast
from ...cluster.plan.measuring import device_name, device_peak, measure
from ...cluster.plan.prices import Prices
from ...cluster.plan.rows import rows_of
from ...cluster.run.prompt_order import training_and_held_out
from ...proto.recipe import SHIPPED, load_recipe
from ...proto.settings import RunSettings
from ...reward_service.scorers import load_scorer, reward_models
from ...rollout_workers.policies.load import load_policy
from ..support.report import Rounds
from ..support.timed_loop import running

PHASES = {"sampling": "rollout", "scoring": "scoring", "learning": "learning"}
"""Phase of a plan -> the run's phase."""
LAYOUTS = {
    "in process": ["execution=in_process"],
    "colocated, 2 ranks": ["placement=colocated"],
    "separate, 2 workers + 2 ranks": ["placement=separate"],
}
RECIPES = {"glyphs": ["pools.rewards.ocr.threads=1"], "shapes": []}
COMMON_OVERRIDES = [
    "threads=1",
    "logging.trace=false",
    "logging.samples_every=0",
    "logging.trees_every=0",
    "policy.device=cpu",
]


def calibrated(settings: RunSettings) -> Calibration:
    """What one thread does in a CPU second."""
    torch.set_num_threads(1)
    policy, cpu = load_policy(settings.policy), torch.device("cpu")
    peak, source = device_peak(cpu, settings.policy.precision, time.process_time)
    scorers = {model: load_scorer(model, given[model], 1) for model, given in reward_models(settings.rewards).items()}
    batches = calibration_batches(settings)
    found = measure(policy, batches, count_work(settings), peak, scorers, time.process_time)
    paces = {own.work: own.pace for own in found}
    cores, slowdown = measure_slowdown(settings, 1, time.process_time)
    return Calibration(device_name(cpu), peak, source, settings.policy.precision, settings.name, paces, cores, slowdown)


def measured(settings: RunSettings, rounds: int) -> tuple[dict[str, float], float]:
    """CPU seconds of an iteration by phase, of all processes, means after a first one; and the share of rows that had
    an advantage."""
    with running(settings, training_and_held_out(settings)[0]) as loop:
        reports = [loop.iterate(number) for number in range(1, rounds + 2)][1:]
    seconds = {phase: fmean(report.usage[own].cpu_seconds for report in reports) for phase, own in PHASES.items()}
    rows = sum(update.rows for report in reports for update in report.updates)
    every = sum(settings.prompts.per_iteration * rows_of(settings, report.iteration) for report in reports)
    return seconds, rows / every


@dataclass(frozen=True)
class Comparison:
    """CPU seconds of an iteration by phase, planned and real."""

    name: str
    share: float
    planned: Mapping[str, float]
    unaware: float
    """Planned in all, as if all rows had an advantage."""
    real: Mapping[str, float]

    def row(self) -> list[str]:
        """The report's row: planned / real seconds of each phase and in all, then both ratios to the real ones."""
        own, real = sum(self.planned.values()), sum(self.real.values())
        phases = (f"{self.planned[phase]:.2f} / {self.real[phase]:.2f}" for phase in PHASES)
        ratios = (f"{seconds / real:.2f}" for seconds in (own, self.unaware))
        return [self.name, f"{self.share:.0%}", *phases, f"{own:.2f} / {real:.2f}", *ratios]


def planned(settings: RunSettings, calibration: Calibration, share: float) -> dict[str, float]:
    """Planned CPU seconds of all processes by phase."""
    prices = Prices.of(settings, (device_of(calibration), calibration), share)
    made = forecast(settings, prices)
    many = {"sampling": made.layout.workers, "learning": made.layout.ranks}
    return {phase: made.phases[phase] * many.get(phase, 1) for phase in PHASES}


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="glyphs, shapes. Default: both.")] = None,
    rounds: Rounds = 3,
) -> None:
    """Compare planned CPU seconds with real ones.

    Example: python -m branchgrpo.benchmarks.scaling.planned_networks glyphs --rounds 5
    """
    console = Console(width=140)
    table = Table("run", "rows", *PHASES, "all", "planned / real", "with all rows", title="CPU seconds, planned / real")
    for recipe in recipes or RECIPES:
        file, own = SHIPPED / f"{recipe}.yaml", [*COMMON_OVERRIDES, *RECIPES[recipe]]
        calibration = calibrated(load_recipe(file, [*own, "execution=in_process"]))
        for name, changes in LAYOUTS.items():
            settings = load_recipe(file, [*own, *changes])
            real, share = measured(settings, rounds)
            aware, unaware = (planned(settings, calibration, part) for part in (share, 1.0))
            table.add_row(*Comparison(f"{recipe}, {name}", share, aware, sum(unaware.values()), real).row())
            console.print(table)


if __name__ == "__main__":
    typer.run(main)
