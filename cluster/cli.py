"""The command line: the commands about runs, those of `commands/cluster_cli.py`, and what all of them share."""

import os
import shlex
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from .. import __version__
from ..proto.errors import InputError, RunFailed
from ..proto.proxies import spare_local_addresses
from .commands.cluster_cli import Cluster, Overrides, TokenFile, token_of
from .commands.cluster_cli import app as cluster_commands
from .commands.export_cli import Best, Ema
from .commands.export_cli import app as export_commands
from .commands.plan_cli import app as plan_commands
from .commands.recipe_cli import app as recipe_commands
from .commands.trace_cli import app as trace_commands
from .run.stop import Stopped, StopRequest
from .run.terminal import lasting_output

if TYPE_CHECKING:
    from .run.folder import WhichCheckpoint

LOOPBACK, PAGES_PORT = "127.0.0.1", 8080
"""Where the web pages are served."""
app = typer.Typer(
    help="BranchGRPO aligns diffusion and flow models with reward models by branching rollouts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)

app.add_typer(recipe_commands)
app.add_typer(plan_commands)
app.add_typer(export_commands)
app.add_typer(cluster_commands)
app.add_typer(trace_commands)

RecipeOrRun = Annotated[Path, typer.Argument(help="YAML file of run settings, or the folder of a run to continue.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run of this name from its newest checkpoint.")]
BackTo = Annotated[
    int | None,
    typer.Option(
        "--iteration", min=0, help="With --resume: go back to the checkpoint of this iteration; 0 starts again."
    ),
]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def train(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    resume: Resume = False,
    iteration: BackTo = None,
    address: Cluster = None,
) -> None:
    """Train a policy with rewards, as the recipe says.

    A run may continue with other settings (docs/operating.md), which its changes.jsonl records.

    Example: [bold]branchgrpo train recipes/glyphs.yaml iterations=4 name=short[/bold], then
    [bold]branchgrpo train runs/short --resume iterations=8 learner.optimizer.learning_rate=1e-4[/bold]
    """
    from .run.folder import load_settings

    settings = load_settings(recipe, overrides or [])
    _check_back_to(iteration, resume)
    console = Console(file=sys.stdout)  # as it is now: the run takes over what others print
    with console.status("starting"):
        from .run.console import RunDisplay
        from .train import train as run
    run(settings, RunDisplay(console), resume=resume, back_to=iteration, address=address)


def _check_back_to(iteration: int | None, resume: bool) -> None:
    if iteration is not None and not resume:
        raise InputError(f"--iteration {iteration} goes back to a checkpoint of a run; give --resume too")


@app.command()
def check(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(help="Also say what fits h100, h200, a100, l40s, 4090 or 5090.")] = None,
) -> None:
    """Report what a run would need: passes, edges and rows, parameters and memory, missing files.

    The exit status is 1 if something is missing.

    Example: [bold]branchgrpo check recipes/flux_hps_branch.yaml policy.pretrained=/models/FLUX.1-dev[/bold]
    """
    from .plan.gpus import find_gpu
    from .run.folder import RunFolder, load_settings

    settings = load_settings(recipe, overrides or [])
    console = Console()
    with console.status("looking"):
        from .commands import check as checking

        kind = find_gpu(gpu) if gpu else None
        found = checking.check(settings, kind)
    checking.show(found, settings, console, kind)
    if found.missing:
        raise typer.Exit(1)
    if found.changes == {}:  # it fits the GPU, if one was named
        words = ["branchgrpo", "train", str(recipe), *(["--resume"] if recipe.is_dir() else []), *(overrides or [])]
        if recipe.is_dir() and RunFolder.open(recipe).done >= settings.iterations:  # nothing is left to do
            words.append(f"iterations={2 * settings.iterations}")
        console.print(f"next: {shlex.join(words)}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def submit(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    resume: Resume = False,
    iteration: BackTo = None,
    address: Annotated[
        str, typer.Option(envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"], help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show the run's log until it ends.")] = True,
) -> None:
    """Train on a Ray cluster, as a job. It is sent the package, the recipe, its prompts and your modules.

    Example: [bold]branchgrpo submit recipes/glyphs.yaml runs=/shared/runs --address http://head:8265[/bold]
    """
    from .run.folder import load_settings

    settings = load_settings(recipe, overrides or [])
    _check_back_to(iteration, resume)
    with Console().status("submitting"):
        from .on_ray.address import use_dashboard

        use_dashboard(address)  # before Ray is imported
        from .commands import submit as jobs
        from .run.advice import advice
        from .run.own_modules import missing_modules

        jobs.check(settings)
        for line in [*advice(settings), *(f"{line}: the cluster must have it" for line in missing_modules(settings))]:
            typer.echo(f"warning: {line}", err=True)
        client = jobs.connect(address)
        job = jobs.submit(client, settings, resume=resume, back_to=iteration)
    typer.echo(f"submitted: {job}")
    try:
        with StopRequest("at once").listening(signal.SIGHUP):
            ended = jobs.follow(client, job) if follow else None
    except Stopped as stopped:
        raise Stopped(stopped.signum, f"the run continues; {jobs.hints(client, job)}") from None
    if ended is None:
        typer.echo(jobs.hints(client, job))
    else:
        typer.echo(f"{job} has {ended.lower()}")
        raise typer.Exit(jobs.EXIT_STATUS[ended])


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(help="Folder of a run, or a recipe to evaluate its untrained policy.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the pictures and their scores.")] = None,
    ema: Ema = False,
    iteration: Annotated[
        list[int] | None, typer.Option("--iteration", help="Use this checkpoint, not the newest; may be repeated.")
    ] = None,
    best: Best = False,
    all_: Annotated[bool, typer.Option("--all", help="Use every checkpoint.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Run (its newest checkpoint) or recipe to compare with, picture by picture.")
    ] = None,
) -> None:
    """Sample the held-out prompts deterministically and score them.

    Settings in the command replace the run's: prompts, rewards, `evaluation.samples`, `.steps` or
    `.seed`, `policy.guidance_scale`.

    Example: [bold]branchgrpo evaluate runs/glyphs evaluation.steps=30 --all --out pictures[/bold], or
    [bold]branchgrpo evaluate runs/glyphs --against recipes/glyphs.yaml[/bold]
    """
    from ..proto.atomic_files import must_be_new

    if (iteration is not None) + best + all_ > 1:
        raise InputError("--iteration, --best and --all name different checkpoints; give one of them")
    if out:
        must_be_new(out)
    from .commands.evaluate import evaluate_command

    named: list[WhichCheckpoint] = ["best"] if best else [*(iteration or ())] or ["newest"]
    evaluate_command(target, overrides or [], None if all_ else named, ema, against, out, Console())


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="Folder or name of a run. Default: all runs.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to ask (host:port). Default: $RAY_ADDRESS, or this machine's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show the status of a run: state, iteration, rewards, time left, restarts, processes. Answers within 5 s.

    Without a run, it prints a line for each run below `runs` and on the cluster.

    Example: [bold]branchgrpo status runs/glyphs[/bold]
    """
    from .commands import status, status_tables

    asking = Console(stderr=True).status("asking")
    if run is None:
        with asking:
            found, complaints = status.find_all(runs, address)
        typer.echo(status.as_json(found)) if as_json else status_tables.show_all(found, Console())
        for complaint in complaints:
            typer.echo(complaint, err=True)
        return
    with asking:
        one = status.find(run, runs, address)
    typer.echo(status.as_json(one)) if as_json else status_tables.show(one, Console())


@app.command()
def view(
    runs: Annotated[Path, typer.Argument(help="Folder of runs, or of one run.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free port.")] = PAGES_PORT,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    token_file: TokenFile = None,
    out: Annotated[Path | None, typer.Option("--export", help="New HTML file to write about one run.")] = None,
    iteration: Annotated[
        int | None, typer.Option(min=0, help="With --export: the iteration of its trees and times, not the newest.")
    ] = None,
) -> None:
    """Serve web pages about runs: curves, pictures, trees, time. They follow runs in progress, and change nothing.

    With --export, write everything about one run into a file that opens without a server.

    Example: [bold]branchgrpo view runs --open[/bold], or [bold]branchgrpo view runs/glyphs --export glyphs.html[/bold]
    """
    from .commands.view import export
    from .commands.view import view as serve

    if out:
        if host != LOOPBACK or port != PAGES_PORT or open_ or token_file:
            raise InputError("--export writes a file and serves no pages; omit --host, --port, --open and --token-file")
        export(runs, out, iteration, Console())
        return
    if iteration is not None:
        raise InputError("--iteration is of --export; choose among iterations in the pages")
    serve(runs, Console(), host=host, port=port, token=token_of(token_file), open_browser=open_)


@app.command()
def pretrain(
    policy: Annotated[Literal["glyphs", "shapes"], typer.Argument(help="One of the embedded policies.")],
    out: Annotated[Path, typer.Argument(help="New folder for the pipeline.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, pictures and batches.")] = 0,
) -> None:
    """Train an embedded policy from scratch (10 to 40 minutes on two cores).

    Example: [bold]branchgrpo pretrain shapes mine && branchgrpo train shapes policy.pretrained=mine[/bold]
    """
    from ..proto.atomic_files import must_be_new

    must_be_new(out)
    made = import_module(f"..rollout_workers.{policy}.pretrain", __package__).pretrain(out, seed=seed)
    typer.echo(f"pipeline: {made}")


def main() -> None:
    """Run the command line. A mistake of the user is printed as one line, with exit status 2."""
    _prepare_environment()
    with suppress(FileNotFoundError):  # the directory may be gone
        sys.path.append(str(Path.cwd()))  # for what recipes name as `module:name`; Ray has its workers do the same
    with lasting_output():
        _main()


def _main() -> None:
    try:
        app(args=[_with_home(argument) for argument in sys.argv[1:]])
    except InputError as error:
        _complain(error)
        sys.exit(2)
    except (OSError, RunFailed) as error:
        _complain(error)
        sys.exit(1)
    except Stopped as stopped:
        typer.echo(str(stopped))
        sys.exit(128 + stopped.signum)


def _with_home(argument: str) -> str:
    """An argument with the home folder for `~`, also where shells leave it: in quotes, and in `--out=~/pictures`."""
    option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + os.path.expanduser(value)


def _complain(error: Exception) -> None:
    console = Console(stderr=True)
    console.print("error: ", style="red", end="")
    console.print(str(error), markup=False, soft_wrap=True, highlight=False)


def _prepare_environment() -> None:
    """Set the variables that libraries read when they are imported; those that are set already stay."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
    }.items():
        os.environ.setdefault(name, value)
    spare_local_addresses()
