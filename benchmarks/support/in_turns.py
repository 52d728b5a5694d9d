"""Runs that do the same work in different ways, iteration by iteration in turns."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from statistics import median
from typing import Any

from rich.table import Table

from ...cluster.run.in_process import InProcessLoop
from ...cluster.run.loop import IterationReport, Loop
from ...cluster.run.prompt_order import training_and_held_out
from ...proto.settings import RunSettings
from .timed_loop import timed

SAME_WORK = (
    "execution=in_process",
    "threads=1",
    "learner.skip_zero_advantage=false",
    "logging.trace=false",
    "logging.samples_every=0",
    "logging.trees_every=0",
)
"""Overrides with which a recipe's runs in one process do the same work: all rows are trained."""
PHASES = ("rollout", "scoring", "learning")


def compare(loops: Mapping[str, Loop], rounds: int) -> dict[str, Any]:
    """Seconds of the first iteration of each way and, of `rounds` after it, medians of its phases' seconds, and of
    their ratios to those of the first way.

    A phase's seconds are the GPUs' if there are some, or the CPUs', which hold on a busy machine too.
    """
    first: dict[str, float] = {}
    spent: dict[str, list[dict[str, float]]] = {way: [] for way in loops}
    for number in range(1, rounds + 2):
        for way, loop in loops.items():
            seconds, report = timed(loop, number)
            if number == 1:
                first[way] = seconds
            else:
                spent[way].append({**_spent(report), "wall": seconds})
    base, *others = loops
    phases = {}
    for phase in spent[base][0]:
        own = {way: [each[phase] for each in spent[way]] for way in loops}
        ratios = {
            f"{way} / {base}": median(one / other for one, other in zip(own[way], own[base], strict=True))
            for way in others
        }
        phases[phase] = {way: median(values) for way, values in own.items()} | ratios
    return {"first iteration, seconds": first, "seconds after it": phases}


def compare_in_process(ways: Mapping[str, RunSettings], rounds: int) -> dict[str, Any]:
    """What `compare` tells of runs in this process."""
    with ExitStack() as running:
        loops = {
            way: running.enter_context(closing(InProcessLoop(own, training_and_held_out(own)[0])))
            for way, own in ways.items()
        }
        return compare(loops, rounds)


def table(found: Mapping[str, Any], title: str) -> Table:
    """What `compare` told."""
    rows = found["seconds after it"]
    made = Table("seconds", *rows["wall"], title=title)
    for phase, figures in rows.items():
        made.add_row(phase, *(f"{value:.2f}" for value in figures.values()))
    made.add_row("first iteration, wall", *(f"{seconds:.1f}" for seconds in found["first iteration, seconds"].values()))
    return made


def _spent(report: IterationReport) -> dict[str, float]:
    used = {phase: report.usage[phase] for phase in PHASES}
    seconds = {
        phase: usage.cpu_seconds if usage.gpu_seconds is None else usage.gpu_seconds for phase, usage in used.items()
    }
    return seconds | {"all": sum(seconds.values())}
