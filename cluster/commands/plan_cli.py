"""The commands about what a run would take: `plan` and `calibrate`. `cluster/cli.py` takes them in."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...proto.errors import InputError
from .cluster_cli import Overrides, Recipe

app = typer.Typer()


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, max=4096, help="Number of GPUs.")] = 8,
    gpu: Annotated[
        str, typer.Option(help="h100, h200, a100, l40s, 4090 or 5090; cpu for cores of this machine, once calibrated.")
    ] = "h100",
    calibration: Annotated[
        Path | None,
        typer.Option(help="File that `calibrate` wrote. Default: what it wrote for this GPU, if anything."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of a run like this one: its share of rows with an advantage is planned."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="New recipe to write, with a layout's settings, and this recipe as its base.")
    ] = None,
    layout: Annotated[
        int | None, typer.Option(min=1, max=5, help="With --write: the table's row to write. Default: the first.")
    ] = None,
) -> None:
    """Show what a run would take: the five fastest layouts that fit, with their seconds, GPU-hours and limits.

    Nothing is run: FLOPs and memory are counted on shapes, and a simulation says who waits for whom.
    Of the policy only configuration files are read.

    Example: [bold]branchgrpo plan flux_hps_branch policy.pretrained=/models/FLUX.1-dev --gpus 8 --gpu h100[/bold]
    """
    from ...proto.atomic_files import must_be_new
    from ..run.folder import load_settings

    if write:
        must_be_new(write)
    elif layout:
        raise InputError("--layout says what --write writes; give both, or neither")
    settings, console = load_settings(recipe, overrides or []), Console()
    with console.status("starting"):
        from ..plan.device import find_device
        from . import plan as planning

        device = find_device(gpu, calibration)
    made, prices = planning.make_plan(settings, gpus, device, like)
    planning.show(made, prices, gpus, console)
    if not made.best:
        raise typer.Exit(1)
    if write:
        row = layout or 1
        if row > len(made.best):
            raise InputError(f"--layout {row}: the table has {len(made.best)} rows")
        planning.write_layout(made.best[row - 1], prices, gpus, recipe, overrides or [], write)
        check = shlex.join(["branchgrpo", "check", str(write)])
        console.print(f"next: {check}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def calibrate(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: ~/.cache/branchgrpo/calibration/DEVICE.json.")
    ] = None,
) -> None:
    """Measure how fast this device does a recipe's work: rollout, training, decoding, rewards. It takes about a minute.

    It loads what the recipe names.
    Plans for this kind of device, of any recipe, then use what was measured.

    Example: [bold]branchgrpo calibrate glyphs policy.device=cpu[/bold], then
    [bold]branchgrpo plan glyphs --gpus 2 --gpu cpu[/bold]
    """
    from ..run.folder import load_settings

    settings, console = load_settings(recipe, overrides or []), Console()
    with console.status("starting"):
        from . import calibrate as calibrating
    written = calibrating.calibrate(settings, console, out)
    console.print(f"wrote {written}", markup=False, highlight=False, soft_wrap=True)
