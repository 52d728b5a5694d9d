"""The command line."""

import os
import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .. import __version__
from ..proto.errors import InputError, RunFailed
from ..proto.proxies import spare_local_addresses
from .run.stop import Stopped, StopRequest
from .run.terminal import lasting_output

if TYPE_CHECKING:
    from .run.folder import WhichCheckpoint

app = typer.Typer(
    help="BranchGRPO aligns diffusion and flow models with reward models by branching rollouts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)

Recipe = Annotated[Path, typer.Argument(help="YAML file of run settings (docs/recipe.md lists them all).")]
RecipeOrRun = Annotated[Path, typer.Argument(help="YAML file of run settings, or the folder of a run to continue.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to replace, such as iterations=10.", metavar="[KEY=VALUE]...")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run of this name from its newest checkpoint.")]
BackTo = Annotated[
    int | None,
    typer.Option(
        "--iteration", min=0, help="With --resume: go back to the checkpoint of this iteration; 0 starts again."
    ),
]
Run = Annotated[Path, typer.Argument(help="Folder of a run, such as runs/glyphs.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to run on (host:port, or auto). Default: $RAY_ADDRESS, or a new one on this machine."
    ),
]
Ema = Annotated[bool, typer.Option("--ema", help="Use the running average of the weights.")]
Iteration = Annotated[
    int | None, typer.Option("--iteration", help="Use the checkpoint of this iteration, not the newest.")
]
Best = Annotated[bool, typer.Option("--best", help="Use the checkpoint with the best evaluation, not the newest.")]


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

    A run may continue with other settings (docs/operating.md); changes.jsonl in its folder records them.

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
def check(recipe: RecipeOrRun, overrides: Overrides = None) -> None:
    """Report what a run would need: passes, edges and rows, parameters and memory, missing files.

    The exit status is 1 if something is missing.

    Example: [bold]branchgrpo check recipes/flux_hps_branch.yaml policy.pretrained=/models/FLUX.1-dev[/bold]
    """
    from .run.folder import load_settings

    settings = load_settings(recipe, overrides or [])
    console = Console()
    with console.status("looking"):
        from .commands import check as checking

        found = checking.check(settings)
    checking.show(found, settings, console)
    if found.missing:
        raise typer.Exit(1)


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

    Settings in the command replace the run's: other prompts, rewards, `evaluation.samples`, `evaluation.steps`,
    `evaluation.seed`, `policy.guidance_scale`.

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
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="New folder to write to.")],
    ema: Ema = False,
    iteration: Iteration = None,
    best: Best = False,
) -> None:
    """Write the trained model in diffusers' format: a transformer folder, or a LoRA file.

    Example: [bold]branchgrpo export runs/glyphs exported[/bold]
    """
    from ..proto.atomic_files import must_be_new

    must_be_new(out)
    from ..learner.export import export as write
    from .run.folder import RunFolder
    from .run.trained import policy_with, trained_weights

    folder = RunFolder.open(run)
    number, weights = trained_weights(folder, _which(iteration, best), ema=ema)
    saved = write(policy_with(folder.settings, weights), out)
    typer.echo(f"exported: {saved}, of iteration {number}")


def _which(iteration: int | None, best: bool) -> "WhichCheckpoint":
    if best and iteration is not None:
        raise InputError(f"--best and --iteration {iteration} name different checkpoints; give one of them")
    return "best" if best else "newest" if iteration is None else iteration


RunOnRay = Annotated[str, typer.Argument(help="Name or folder of a run in progress.", metavar="RUN")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster of the run (host:port). Default: what the run folder says, or auto.")
]


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(help="Folder or name of a run. Default: all runs.", metavar="[RUN]")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to ask (host:port). Default: $RAY_ADDRESS, or this machine's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show the status of a run: state, iteration, rewards, time left, restarts, processes. Answers within 5 s.

    Without RUN, it prints a line for each run below `runs` and on the cluster.

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
def scale(
    run: RunOnRay,
    rollout_workers: Annotated[int | None, typer.Option(help="Number of rollout workers.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="Replicas of a reward model, such as ocr=2.", metavar="NAME=COUNT")
    ] = None,
    address: Address = None,
) -> None:
    """Resize the pools of a run in progress. Workers that leave finish their task first.

    Example: [bold]branchgrpo scale runs/mine --rollout-workers 4 --reward ocr=2[/bold]
    """
    from .commands import scale
    from .on_ray.run_address import RunAddress

    where, counts = RunAddress.find(run, address), scale.replica_counts(reward or [])
    with Console().status("scaling"):
        starting = scale.scale(where, rollout_workers, counts)
    typer.echo(f"{starting} workers have no room yet; they start when there is some" if starting else "scaled")


MAX_SECONDS = 1e6


def _duration(context: typer.Context, option: typer.CallbackParam, value: float) -> float:
    """Check a number of seconds or minutes. Raises InputError if it isn't between 0 and the maximum."""
    if not 0 <= value <= MAX_SECONDS:
        raise InputError(f"--{option.name} is {value:g}; it must be from 0 to {MAX_SECONDS:g}")
    return value


Seconds = Annotated[
    float, typer.Option("--seconds", callback=_duration, help="Maximum seconds for its processes to move elsewhere.")
]


@app.command()
def drain(
    address: Annotated[
        str | None,
        typer.Option(help="The cluster (host:port). Default: $RAY_ADDRESS, or that of this machine's only node."),
    ] = None,
    node_name: Annotated[
        str | None, typer.Option(help="Name of the node. Default: the cluster's only one on this machine.")
    ] = None,
    seconds: Seconds = 60,
) -> None:
    """Take a node out of use before its machine is taken away: runs move their processes off it.

    Call it from a termination hook, such as Kubernetes' preStop.

    Example: [bold]branchgrpo drain --seconds 90[/bold]
    """
    from .on_ray.address import find_ray

    found = find_ray(address)
    from .commands.node import drain as empty

    name, left = empty(found, node_name, seconds)
    state = f"is still used by {', '.join(left)}" if left else "is drained"
    typer.echo(f"node {name} of the cluster at {found} {state}")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def node(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="The cluster's head (host:port).")],
    seconds: Seconds = 60,
) -> None:
    """Make this machine a node of a Ray cluster. SIGTERM, the notice that it will be taken away, drains it first.

    Other options are passed to `ray start`.

    Example: [bold]branchgrpo node head:6379 --num-gpus=8 --labels=pool=rollout[/bold]
    """
    from .on_ray.address import find_ray

    found = find_ray(address)
    from .commands.node import join

    raise typer.Exit(join(found, seconds, context.args))


@app.command()
def clean(
    runs: Annotated[Path, typer.Argument(help="Folder of run folders.")] = Path("runs"),
    address: Annotated[
        str | None, typer.Option(help="The cluster (host:port). Default: $RAY_ADDRESS, or that of this machine.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
) -> None:
    """List what killed runs have left on a cluster and in run folders; remove it with --yes.

    It never touches runs in progress, served rewards, or anything that isn't BranchGRPO's.

    Example: [bold]branchgrpo clean --address head:6379 --yes[/bold]
    """
    from .on_ray.address import RAY_ADDRESS, find_ray, nodes_here

    cluster = find_ray(address) if address or os.environ.get(RAY_ADDRESS) or nodes_here() else None
    from .commands.clean import orphans, stale_notes
    from .on_ray.connect import visiting

    with visiting(cluster) if cluster else nullcontext():
        left = [*(orphans() if cluster else []), *stale_notes(runs)]
        for leftover in left:
            if yes:
                leftover.remove()
            typer.echo(f"{'removed' if yes else 'left by a run that is gone'}: {leftover.what}")
    where = f"on the cluster at {cluster} and in {runs}" if cluster else f"in {runs}; no Ray runs on this machine"
    if not left:
        typer.echo(f"nothing is left {where}")
    elif not yes:
        typer.echo("remove it with --yes")


@app.command()
def monitor(
    run: Annotated[Path, typer.Argument(help="Folder of a run in progress, such as runs/glyphs.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prometheus.")] = 9090,
    grafana_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Grafana.")] = 3000,
    ray_dashboard: Annotated[
        str | None, typer.Option(help="Ray's dashboard, to add Ray's metrics: http://head:8265.")
    ] = None,
) -> None:
    """Start Prometheus, and Grafana if it is installed, for a run. They end with the run, or with Ctrl-C.

    Example: [bold]branchgrpo monitor runs/glyphs[/bold]
    """
    from .commands.monitor import monitor as watch
    from .run.folder import RunFolder

    watch(RunFolder.open(run).path, port, grafana_port, ray_dashboard, Console())


@app.command()
def draw_dashboards(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    out: Annotated[Path, typer.Option(help="New folder for the pictures.")] = Path("dashboards"),
    prometheus: Annotated[str, typer.Option(help="Prometheus that scrapes the run.")] = "http://127.0.0.1:9090",
    minutes: Annotated[float, typer.Option(callback=_duration, help="How far to look back.")] = 30,
) -> None:
    """Draw the dashboards of a run as pictures, without Grafana.

    Example: [bold]branchgrpo draw-dashboards runs/glyphs --out pictures[/bold]
    """
    import time

    from ..proto.atomic_files import must_be_new
    from .commands.draw_dashboards import Prometheus, draw

    must_be_new(out)

    end, server = time.time(), Prometheus(prometheus)
    with Console().status("drawing"):
        paths = draw(server, Path(run).name, end - 60 * minutes, end, out)
    for path in paths:
        typer.echo(f"drawn: {path}")


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
    from ..proto.atomic_files import must_be_new
    from .observability import trace as traces
    from .run.folder import RunFolder

    if out:
        must_be_new(out)
    found = traces.read(RunFolder.open(run).path, iteration)
    traces.show(found, Console())
    typer.echo(f"for https://ui.perfetto.dev: {traces.write_chrome(found, run, out)}")


@app.command()
def serve_rewards(
    recipe: Recipe,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free port.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the bearer token that requests must have. Default: $BRANCHGRPO_TOKEN."),
    ] = None,
    max_mib: Annotated[int, typer.Option(min=1, help="Maximum MiB of a request, and of its pictures.")] = 64,
    address: Cluster = None,
) -> None:
    """Serve the reward models of a recipe over HTTP, for any trainer.

    On addresses other than 127.0.0.1 requests must have the token.

    Example: [bold]branchgrpo serve-rewards recipes/glyphs.yaml --port 8000[/bold], then
    http://127.0.0.1:8000/docs
    """
    from ..proto.recipe import load_recipe

    settings = load_recipe(recipe, overrides or [])
    console = Console()
    with console.status("starting"):
        from .on_ray.address import find_cluster

        address = find_cluster(address)  # before Ray is imported
        from .commands.serve_rewards import serve
    serve(settings, host, port, _token(token_file), max_mib * 2**20, address, console)


def _token(file: Path | None) -> str | None:
    """The token of a file or of the environment. Raises InputError if it isn't valid."""
    from ..proto.scoring import checked_token

    if file is None:
        return checked_token(os.environ.get("BRANCHGRPO_TOKEN"), "BRANCHGRPO_TOKEN")
    try:
        return checked_token(file.read_text(encoding="ascii").strip(), f"--token-file '{file}'")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file '{file}' can't be read: {error}") from error


@app.command()
def pretrain_glyphs(
    out: Annotated[Path, typer.Argument(help="New folder for the pipeline.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, pictures and batches.")] = 0,
) -> None:
    """Train the embedded policy `glyphs` from scratch (under 20 minutes on two cores).

    Example: [bold]branchgrpo pretrain-glyphs glyphs && branchgrpo evaluate recipes/glyphs.yaml[/bold]
    """
    from ..proto.atomic_files import must_be_new

    must_be_new(out)
    from ..rollout_workers.glyphs.pretrain import pretrain

    typer.echo(f"pipeline: {pretrain(out, seed=seed)}")


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
    """Before torch and the rest are imported. Variables that are set already win."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
    }.items():
        os.environ.setdefault(name, value)
    spare_local_addresses()
