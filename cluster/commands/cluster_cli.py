"""The commands about studies, clusters, nodes and services. `cluster/cli.py`, with those about runs, takes them in."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...proto.errors import InputError

app = typer.Typer()

Recipe = Annotated[Path, typer.Argument(help="YAML file of run settings (docs/recipe.md lists them all).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to replace, such as iterations=10.", metavar="KEY=VALUE")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to run on (host:port, or auto). Default: $RAY_ADDRESS, or a new one on this machine."
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with the token that requests must have. Default: $BRANCHGRPO_TOKEN.")
]
RunInProgress = Annotated[str, typer.Argument(help="Name or folder of a run in progress.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster of the run (host:port). Default: what the run folder says, or auto.")
]


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="YAML file of a study (docs/studies.md).")],
    report: Annotated[bool, typer.Option("--report", help="Only write the report of what there is so far.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the study. Default: runs/NAME.")] = None,
    address: Cluster = None,
) -> None:
    """Compare variants of a recipe over several seeds, each equally tuned, and write a report.

    Stopped or killed, the same command continues.
    The exit status is 1 if a run broke; the others come to their end.

    Example: [bold]branchgrpo study studies/methods.yaml[/bold], and meanwhile
    [bold]branchgrpo study studies/methods.yaml --report[/bold]
    """
    with Console().status("starting"):
        from ..study.file import load_study
        from ..study.report import write_report
        from ..study.trials import must_continue

        loaded = load_study(file, out)
        must_continue(loaded)
    if not report:
        with Console().status("starting"):
            from ..on_ray.address import find_cluster

            address = find_cluster(address)  # before Ray is imported
            from .study import run_study
        run_study(loaded, address, Console())
    written = write_report(loaded)
    typer.echo(f"report: {written.path}")
    for folder in written.broken:
        typer.echo(f"broken: {folder}", err=True)
    if written.broken:
        raise typer.Exit(1)


@app.command()
def diversity(
    target: Annotated[Path, typer.Argument(help="Folder of a run, or a recipe for its untrained policy.")],
    overrides: Overrides = None,
    iteration: Annotated[
        list[int] | None, typer.Option("--iteration", help="Use this checkpoint, not the newest; may be repeated.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Number of held-out prompts to sample.")] = 24,
    permutations: Annotated[int, typer.Option(min=1, help="Number of exchanges of labels in the test.")] = 1000,
    features: Annotated[
        str | None, typer.Option(help="Folder of a CLIP model. Default: the run's CLIP reward, else pixels.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the results as JSON and CSV.")] = None,
) -> None:
    """Compare the leaves of trees with samples that are drawn one by one: MMD² with a permutation test.

    docs/studies.md says what the figures mean.
    Of a run, its start and its newest checkpoint are compared.
    Settings in the command replace the run's.

    Example: [bold]branchgrpo diversity runs/shapes --prompts 40 --out diversity[/bold], or
    [bold]branchgrpo diversity shapes schedule.sibling_spread=1[/bold]
    """
    from ...proto.atomic_files import must_be_new

    if out:
        must_be_new(out)
    from .diversity import diversity_command

    diversity_command(target, overrides or [], iteration or ["newest"], prompts, permutations, features, out, Console())


@app.command()
def scale(
    run: RunInProgress,
    rollout_workers: Annotated[int | None, typer.Option(min=1, max=10_000, help="Number of rollout workers.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="Replicas of a reward model, such as ocr=2.", metavar="NAME=COUNT")
    ] = None,
    address: Address = None,
) -> None:
    """Resize the pools of a run in progress. Workers that leave finish their task first.

    Example: [bold]branchgrpo scale runs/mine --rollout-workers 4 --reward ocr=2[/bold]
    """
    from ..on_ray.run_address import RunAddress
    from . import scale

    where, counts = RunAddress.find(run, address), scale.replica_counts(reward or [])
    with Console().status("scaling"):
        starting = scale.scale(where, rollout_workers, counts)
    typer.echo(f"{starting} of them have no room yet; they start when there is some" if starting else "scaled")


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
    from ..on_ray.address import find_ray

    found = find_ray(address)
    from .node import drain as empty

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
    from ..on_ray.address import find_ray

    found = find_ray(address)
    from .node import join

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
    from ..on_ray.address import RAY_ADDRESS, find_ray, nodes_here

    cluster = find_ray(address) if address or os.environ.get(RAY_ADDRESS) or nodes_here() else None
    from ..on_ray.connect import visiting
    from .clean import orphans, stale_notes

    with visiting(cluster) if cluster else nullcontext():
        left = [*(orphans() if cluster else []), *stale_notes(runs)]
        for leftover in left:
            if yes:
                leftover.remove()
            typer.echo(f"{'removed' if yes else 'left by a run that is gone'}: {leftover.what}")
    where = (
        f"on the cluster at {cluster} and in {runs}" if cluster else f"in {runs}; no Ray cluster runs on this machine"
    )
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
    from ..run.folder import RunFolder
    from .monitor import monitor as watch

    watch(RunFolder.open(run).path, port, grafana_port, ray_dashboard, Console())


@app.command()
def draw_dashboards(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    out: Annotated[Path, typer.Option(help="New folder for the pictures.")] = Path("dashboards"),
    prometheus: Annotated[str, typer.Option(help="Prometheus that scrapes the run.")] = "http://127.0.0.1:9090",
    minutes: Annotated[float, typer.Option(callback=_duration, help="How far to look back.")] = 30,
) -> None:
    """Draw the dashboards of a run as pictures, without Grafana.

    Example: [bold]branchgrpo draw-dashboards runs/glyphs --out dashboards[/bold]
    """
    import time

    from ...proto.atomic_files import must_be_new
    from .draw_dashboards import Prometheus, draw

    must_be_new(out)
    if not minutes:
        raise InputError("--minutes is 0; it must be more")
    end, server = time.time(), Prometheus(prometheus)
    with Console().status("drawing"):
        paths = draw(server, Path(run).name, end - 60 * minutes, end, out)
    for path in paths:
        typer.echo(f"drawn: {path}")


@app.command()
def serve_rewards(
    recipe: Recipe,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free port.")] = 8000,
    token_file: TokenFile = None,
    max_mib: Annotated[int, typer.Option(min=1, help="Maximum MiB of a request, and of its pictures.")] = 64,
    address: Cluster = None,
) -> None:
    """Serve the reward models of a recipe over HTTP, for any trainer.

    On addresses other than 127.0.0.1 requests must have the token.

    Example: [bold]branchgrpo serve-rewards recipes/glyphs.yaml --port 8000[/bold], then
    http://127.0.0.1:8000/docs
    """
    from ...proto.recipe import load_recipe

    settings = load_recipe(recipe, overrides or [])
    console = Console()
    with console.status("starting"):
        from ..on_ray.address import find_cluster

        address = find_cluster(address)  # before Ray is imported
        from .serve_rewards import serve
    token = token_of(token_file)
    serve(settings, console, host=host, port=port, token=token, max_bytes=max_mib * 2**20, address=address)


def token_of(file: Path | None) -> str | None:
    """The token of a file or of the environment. Raises InputError if it isn't valid."""
    from ...proto.scoring import checked_token

    if file is None:
        return checked_token(os.environ.get("BRANCHGRPO_TOKEN"), "BRANCHGRPO_TOKEN")
    try:
        return checked_token(file.read_text(encoding="ascii").strip(), f"--token-file '{file}'")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file '{file}' can't be read: {error}") from error
