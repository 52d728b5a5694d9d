"""The commands about shipped recipes. `cluster/cli.py` takes them in."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()


@app.command()
def recipes() -> None:
    """List the recipes that come with the package. Each goes by its name, wherever a recipe is asked for.

    Example: [bold]branchgrpo recipes[/bold], then [bold]branchgrpo train glyphs[/bold]
    """
    from . import recipes as shipped

    shipped.show(Console())


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe, such as flux_hps_branch.", metavar="recipe")],
    file: Annotated[Path | None, typer.Argument(help="File to write. Default: the recipe's name with .yaml.")] = None,
) -> None:
    """Copy a shipped recipe with its comments and prompts, to start your own from.

    Example: [bold]branchgrpo init flux_hps_branch mine.yaml[/bold], then [bold]branchgrpo check mine.yaml[/bold]
    """
    from . import recipes as shipped

    written = shipped.copy(name, file or Path(f"{name}.yaml"))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"wrote {', '.join(map(str, written))}", markup=False)
    console.print(f"next: branchgrpo check {shlex.quote(str(written[0]))}", markup=False)
