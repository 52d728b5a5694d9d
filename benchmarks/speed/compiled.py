"""Whether a compiled network pays on the CPU: iterations in one process, eager and compiled, in turns on one thread.

All rows are trained, so that both do the same work. CPU seconds hold on a busy machine too. The first iteration, in
which networks are compiled by many processes, is measured in wall seconds.

    python -m branchgrpo.benchmarks.speed.compiled --out build/bench
"""

import os
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from ...proto.recipe import SHIPPED, load_recipe
from ..support.in_turns import SAME_WORK, compare_in_process, table
from ..support.report import OUT, Out, Rounds, report_path, write_report

RECIPES = ("glyphs", "shapes")
WAYS = {"eager": False, "compiled": True}


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
    given, found = [*SAME_WORK, "policy.device=cpu", *(setting or [])], dict[str, Any]()
    with TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # else an earlier run's code would be found
        for name in recipe or RECIPES:
            file = SHIPPED / f"{name}.yaml"
            ways = {way: load_recipe(file, [*given, f"policy.compile={value}"]) for way, value in WAYS.items()}
            found[name] = compare_in_process(ways, rounds)
            Console().print(table(found[name], f"{name}, CPU seconds, medians of {rounds}"))
    write_report(path, {"torch": torch.__version__, "recipes": found})


if __name__ == "__main__":
    typer.run(main)
