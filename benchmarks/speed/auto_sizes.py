"""Whether sizes that are `auto` pay: iterations in one process with a recipe's own sizes, and with chosen ones, in
turns.

Sizes are chosen after the recipe was calibrated on this device.

    python -m branchgrpo.benchmarks.speed.auto_sizes --out build/bench
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console

from ...cluster.commands.calibrate import calibrate
from ...cluster.plan.calibration import device_of, load_calibration
from ...cluster.plan.sizes import choose_sizes
from ...proto.recipe import SHIPPED, load_recipe
from ...proto.settings_errors import named_settings
from ..support.in_turns import SAME_WORK, compare_in_process, table
from ..support.report import OUT, Out, Rounds, report_path, write_report

SIZES = (
    "rollout.trees_per_task",
    "rollout.max_batch_rows",
    "rollout.decode_batch",
    "learner.window_trees",
    "learner.rows_per_micro_batch",
)


def main(
    out: Out = OUT,
    rounds: Rounds = 3,
    recipe: Annotated[str, typer.Option(help="A shipped recipe.")] = "glyphs",
    setting: Annotated[list[str] | None, typer.Option(help="A setting to replace; may be repeated.")] = None,
) -> None:
    """Compare iterations with a recipe's own sizes and with chosen ones.

    Example: python -m branchgrpo.benchmarks.speed.auto_sizes --recipe shapes --rounds 5
    """
    path, console = report_path(out, "auto_sizes"), Console()
    torch.set_num_threads(1)
    file, given = SHIPPED / f"{recipe}.yaml", [*SAME_WORK, *(setting or [])]
    fixed = load_recipe(file, given)
    with TemporaryDirectory() as folder:
        calibration = load_calibration(calibrate(fixed, console, Path(folder) / "calibration.json"))
    automatic = load_recipe(file, [*given, *(f"{name}=auto" for name in SIZES)])
    ways = {"fixed": fixed, "auto": choose_sizes(automatic, (device_of(calibration), calibration))}
    found = compare_in_process(ways, rounds)
    sizes = {way: named_settings(own, SIZES) for way, own in ways.items()}
    console.print(table(found, f"{recipe}, medians of {rounds}"))
    console.print(sizes)
    write_report(path, {"recipe": recipe, "settings": setting or [], "sizes": sizes, **found})


if __name__ == "__main__":
    typer.run(main)
