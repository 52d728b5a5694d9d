"""Whether a compiled network pays on the CPU: iterations in one process, eager and compiled, in turns on one thread.

All rows are trained, so that both do the same work. CPU seconds hold on a busy machine too. The first iteration, in
which networks are compiled by many processes, is measured in wall seconds.

    python -m branchgrpo.benchmarks.speed.compiled --out build/bench
"""

import os
from contextlib import ExitStack, closing
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ...cluster.run.in_process import InProcessLoop
from ...cluster.run.prompt_order import training_and_held_out
from ...proto.recipe import SHIPPED, load_recipe
from ..support.report import OUT, Out, Rounds, report_path, write_report
from ..support.timed_loop import timed

RECIPES = ("glyphs", "shapes")
WAYS = {"eager": False, "compiled": True}
PHASES = ("rollout", "scoring", "learning")
SAME_WORK = (
    "execution=in_process",
    "threads=1",
    "policy.device=cpu",
    "learner.skip_zero_advantage=false",
    "logging.trace=false",
    "logging.samples_every=0",
    "logging.trees_every=0",
)


def compare(recipe: str, rounds: int, settings: list[str]) -> dict[str, Any]:
    """Seconds of the first iteration of each way and, of `rounds` after it, medians of CPU seconds and of their
    ratios."""
    first: dict[str, float] = {}
    spent: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with ExitStack() as running:
        loops = {}
        for way, value in WAYS.items():
            own = load_recipe(SHIPPED / f"{recipe}.yaml", [*SAME_WORK, *settings, f"policy.compile={value}"])
            loops[way] = running.enter_context(closing(InProcessLoop(own, training_and_held_out(own)[0])))
        for number in range(1, rounds + 2):
            for way, loop in loops.items():
                seconds, report = timed(loop, number)
                if number == 1:
                    first[way] = seconds
                    continue
                cpu = {phase: report.usage[phase].cpu_seconds for phase in PHASES}
                spent[way].append(cpu | {"all": sum(cpu.values())})
    phases = {}
    for phase in (*PHASES, "all"):
        eager, compiled = ([cpu[phase] for cpu in spent[way]] for way in WAYS)
        ratio = median(one / other for one, other in zip(compiled, eager, strict=True))
        phases[phase] = {"eager": median(eager), "compiled": median(compiled), "compiled / eager": ratio}
    return {"first iteration, seconds": first, "CPU seconds after it": phases}


def main(
    out: Out = OUT,
    rounds: Rounds = 3,
    recipe: Annotated[list[str] | None, typer.Option(help="A shipped recipe; may be repeated.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="A setting to replace; may be repeated.")] = None,
) -> None:
    """Compare iterations of eager and of compiled networks.

    Example: python -m branchgrpo.benchmarks.speed.compiled --recipe glyphs --rounds 5
    """
    path = report_path(out, "compiled")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    table = Table("recipe", "", *WAYS, "compiled / eager", title=f"CPU seconds of an iteration, medians of {rounds}")
    with TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # else an earlier run's code would be found
        for name in recipe or RECIPES:
            found[name] = compare(name, rounds, setting or [])
            for phase, figures in found[name]["CPU seconds after it"].items():
                table.add_row(name, phase, *(f"{value:.2f}" for value in figures.values()))
            first = found[name]["first iteration, seconds"]
            table.add_row(name, "first iteration, wall", *(f"{first[way]:.1f}" for way in WAYS), end_section=True)
    Console().print(table)
    write_report(path, {"torch": torch.__version__, "recipes": found})


if __name__ == "__main__":
    typer.run(main)
