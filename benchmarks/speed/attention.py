"""What a network's attention kernels are worth: iterations in one process with each, in turns.

python -m branchgrpo.benchmarks.speed.attention --out build/bench
"""

from typing import Annotated

import torch
import typer
from rich.console import Console

from ...proto.recipe import SHIPPED, load_recipe
from ..support.in_turns import SAME_WORK, compare_in_process, table
from ..support.report import OUT, Out, Rounds, report_path, write_report

KERNELS = ("native", "_native_math")
"""What PyTorch chooses, and attention step by step: both are there on every device."""


def main(
    out: Out = OUT,
    rounds: Rounds = 3,
    recipe: Annotated[str, typer.Option(help="A shipped recipe.")] = "glyphs",
    kernels: Annotated[list[str] | None, typer.Option(help="A value of policy.attention; may be repeated.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="A setting to replace; may be repeated.")] = None,
) -> None:
    """Compare iterations by the attention kernels of their network.

    Example: python -m branchgrpo.benchmarks.speed.attention --setting policy.height=128 --setting policy.width=128
    """
    path = report_path(out, "attention")
    torch.set_num_threads(1)
    file, given = SHIPPED / f"{recipe}.yaml", [*SAME_WORK, *(setting or [])]
    ways = {name: load_recipe(file, [*given, f"policy.attention={name}"]) for name in kernels or KERNELS}
    found = compare_in_process(ways, rounds)
    Console().print(table(found, f"{recipe} by policy.attention, medians of {rounds}"))
    write_report(path, {"torch": torch.__version__, "recipe": recipe, "settings": setting or [], **found})


if __name__ == "__main__":
    typer.run(main)
