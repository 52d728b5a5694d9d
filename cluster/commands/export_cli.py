"""The command `export`. `cluster/cli.py` takes it in."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...proto.errors import InputError

if TYPE_CHECKING:
    from ..run.folder import WhichCheckpoint

app = typer.Typer()

Run = Annotated[Path, typer.Argument(help="Folder of a run, such as runs/glyphs.")]
Ema = Annotated[bool, typer.Option("--ema", help="Use the running average of the weights.")]
Best = Annotated[bool, typer.Option("--best", help="Use the checkpoint with the best evaluation, not the newest.")]


class Format(StrEnum):
    """The tools by whose names a LoRA is written."""

    DIFFUSERS = "diffusers"
    COMFYUI = "comfyui"
    KOHYA = "kohya"


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="New folder to write to.")],
    ema: Ema = False,
    iteration: Annotated[
        int | None, typer.Option("--iteration", help="Use the checkpoint of this iteration, not the newest.")
    ] = None,
    best: Best = False,
    form: Annotated[
        Format, typer.Option("--format", help="Tool that is to read a LoRA: kohya is sd-scripts and musubi-tuner.")
    ] = Format.DIFFUSERS,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a whole pipeline, LoRAs merged, with a model card: ready to publish.")
    ] = False,
) -> None:
    """Write the trained model in diffusers' format: a transformer folder, or a LoRA file, also for other tools.

    Example: [bold]branchgrpo export runs/glyphs exported[/bold], or, of a run with a LoRA,
    [bold]branchgrpo export runs/mine exported --format comfyui[/bold], or
    [bold]branchgrpo export runs/mine pipeline --merge[/bold]
    """
    from ...proto.atomic_files import must_be_new

    must_be_new(out)
    from . import export as exporting

    number, files = exporting.export(run, out, _which(iteration, best), ema=ema, form=form.value, merge=merge)
    typer.echo(f"exported: {', '.join(map(str, files))}, of iteration {number}")
    if merge:
        from .publish import upload_command

        typer.echo(
            f"to publish it, read README.md and recipe.yaml there, then: {upload_command(run.resolve().name, out)}"
        )


def _which(iteration: int | None, best: bool) -> "WhichCheckpoint":
    if best and iteration is not None:
        raise InputError(f"--best and --iteration {iteration} name different checkpoints; give one of them")
    return "best" if best else "newest" if iteration is None else iteration
