"""The commands that look into iterations: `trace` and `profile`. `cluster/cli.py` takes them in."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...proto.profiling import Component
from .cluster_cli import Address, RunInProgress
from .export_cli import Run

app = typer.Typer()


@app.command()
def trace(
    run: Run,
    iteration: Annotated[int | None, typer.Option(help="Iteration to look at. Default: the newest.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="New file to write. Default: trace/iteration-N.json in the run folder.")
    ] = None,
) -> None:
    """Show where an iteration's seconds went: its critical path, and the idle time of each pool.

    It also writes a trace of all processes, for https://ui.perfetto.dev or chrome://tracing.

    Example: [bold]branchgrpo trace runs/glyphs --iteration 3[/bold]
    """
    from ...proto.atomic_files import must_be_new
    from ..run.folder import RunFolder
    from ..run.iteration_trace import read
    from . import trace as traces

    if out:
        must_be_new(out)
    found = read(RunFolder.open(run).path, iteration)
    traces.show(found, Console())
    typer.echo(f"for https://ui.perfetto.dev: {traces.write_chrome(found, run, out)}")


@app.command()
def profile(
    run: RunInProgress,
    iterations: Annotated[int, typer.Option(min=1, help="Number of iterations, from the next that begins.")] = 1,
    process: Annotated[
        list[Component] | None,
        typer.Option(help="Work to look into; may be repeated. Default: rollout and learner; all in one process."),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="All rollout workers and learner ranks, not only the first of each.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Maximum seconds of such work in a process; the part at hand is finished.")
    ] = 20,
    out: Annotated[
        Path | None, typer.Option(help="New file to write. Default: trace/profile-FIRST-LAST.json in the run folder.")
    ] = None,
    address: Address = None,
) -> None:
    """Show what torch does within the spans of a running run: its operations and the GPU's kernels, for Perfetto.

    Nothing is restarted. The iterations are slower while they are profiled, and come out the same.
    Of reward models (`--process reward`), every replica that gets work is profiled.

    Example: [bold]branchgrpo profile runs/mine --iterations 2 --process learner[/bold]
    """
    from ...proto.atomic_files import must_be_new
    from . import profile as profiles

    if out:
        must_be_new(out)
    where = profiles.running(run, address)
    plural = "iteration" if iterations == 1 else f"{iterations} iterations"
    with Console().status(f"profiling the next {plural}"):
        order = profiles.profile(where, iterations, process, all_, seconds)
        path = profiles.write(order, out)
    typer.echo(f"iterations {order.first} to {order.last}, for https://ui.perfetto.dev: {path}")
