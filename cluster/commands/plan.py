"""`branchgrpo plan`: the layouts of a run on given GPUs, from the fastest: seconds, GPU-hours, and what limits them."""

import math
import operator
import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ...proto.atomic_files import write_text
from ...proto.recipe import SHIPPED, WHOLE_RECIPE
from ...proto.settings import RunSettings
from ...proto.settings_errors import named_settings
from ...proto.yaml12 import write_yaml
from ...reward_service.scorers import precision_on_gpu
from ..plan.calibration import ASSUMED, ASSUMED_SCORING, DECODE, FORWARD, Calibration
from ..plan.device import Device
from ..plan.fit import UNUSABLE_BYTES, misfit, remedies
from ..plan.gpus import Gpu
from ..plan.layouts import SHARED_GPU, Layout, Plan, Planned, balance_of, gpu_rewards, layouts, plan
from ..plan.memory import count_memory
from ..plan.memory_tables import memory_table, remedy_line, rows_table
from ..plan.prices import REWARD_CORE, Prices
from ..plan.rows import learner_rows, share_of
from ..plan.sizes import choose_sizes

REASONS = 3
"""Maximum number of reasons that are printed for layouts that were left out."""


def make_plan(settings: RunSettings, gpus: int, device: Device, like: Path | None = None) -> tuple[Plan, Prices]:
    """The best layouts of a recipe on so many GPUs, and their prices. As large a share of rows has an advantage as in
    the run `like`, if there is one. Raises InputError for a policy whose network can't be counted."""
    share = share_of(like, settings) if like else 1.0
    with Progress(transient=True) as progress:
        counting = progress.add_task("counting", total=None)
        gpu, prices = device[0], Prices.of(settings, device, share)
        costs = prices.costs(Layout("colocated", gpus, gpus).cluster)
        balance = balance_of(settings, costs, share * learner_rows(settings))
        candidates = list(layouts(settings, gpus, balance, reward_share(settings, gpu)))
        progress.update(counting, visible=False)
        simulating = progress.add_task("simulating", total=len(candidates))
        made = plan(
            settings,
            candidates,
            lambda layout: prices.costs(layout.cluster, layout.beside, layout.placement == "colocated"),
            lambda changed: misfit(changed, gpu.memory),
            lambda changed: choose_sizes(changed, device),
            resource=resource(gpu),
            advance=lambda: progress.advance(simulating),
        )
    return made, prices


def reward_share(settings: RunSettings, gpu: Gpu) -> float:
    """The part of a GPU that a replica needs of the reward model with the largest memory, in twentieths."""
    models = gpu_rewards(settings)
    peaks = [own.peak for name, own in count_memory(settings).items() if name.rpartition(" ")[2] in models]
    return math.ceil(20 * (max(peaks) + UNUSABLE_BYTES) / gpu.memory) / 20 if peaks else SHARED_GPU


def resource(gpu: Gpu) -> str:
    """What a pool reserves of a device."""
    return "cpus" if gpu.name == "cpu" else "gpus"


def unit_of_hours(gpu: Gpu) -> str:
    """What the hours of a run are counted of."""
    return "core" if gpu.name == "cpu" else "GPU"


def show(made: Plan, prices: Prices, gpus: int, console: Console) -> None:
    """Print the best layouts as a table, what was assumed, and why other layouts were left out."""
    settings, calibration, unit = prices.settings, prices.calibration, unit_of_hours(prices.gpu)
    title = f"{escape(settings.name)} on {gpus} x {prices.gpu.name}, seconds of an iteration"
    table = Table("", title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layout", min_width=15)  # on a narrow terminal it is wrapped, not cut
    for column in ("all", *(made.best[0].phases if made.best else ()), f"{unit}-h"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("limit", min_width=8)
    for number, own in enumerate(made.best, start=1):
        seconds = (f"{seconds:.3g}" if seconds >= 0.01 else "0" for seconds in (own.seconds, *own.phases.values()))
        table.add_row(str(number), own.layout.text, *seconds, f"{hours(own, gpus):,.3g}", own.limit)
    if made.best:
        console.print(table)
        console.print(
            "Phases overlap, so they may add up to more than all. Limit: the part to make faster; with that part twice "
            f"as fast, an iteration is as many times as fast as the brackets say. {unit}-h: {unit} hours of all "
            f"{settings.iterations} iterations, without evaluations and checkpoints.",
            highlight=False,
        )
    console.print(_source(prices, calibration), markup=False, highlight=False)
    if made.best and settings.automatic:
        numbers = named_settings(made.best[0].settings, settings.automatic)
        console.print("auto, in layout 1: " + " ".join(f"{name}={number}" for name, number in numbers.items()))
    if made.best:
        memories = count_memory(made.best[0].settings)
        console.print(memory_table(memories, prices.gpu.memory), rows_table(memories, prices.gpu.memory))
    for reason, left in list(made.dropped.items())[:REASONS]:
        such = left[0].text + (f", and {len(left) - 1} more" if left[1:] else "")
        console.print("left out: ", end="", style="yellow")
        console.print(f"{such}: {reason}", markup=False, soft_wrap=True, highlight=False)
    if made.fastest and not made.best:
        line = remedy_line(made.fastest, remedies(made.fastest, prices.gpu.memory), prices.gpu)
        console.print(line, style="yellow", markup=False, soft_wrap=True)


def hours(own: Planned, gpus: int) -> float:
    """GPU-hours of the whole run."""
    return gpus * own.seconds * own.settings.iterations / 3600


def _source(prices: Prices, calibration: Calibration) -> str:
    """What the seconds come from."""
    settings = prices.settings
    if calibration.paces:
        lines = f"Utilisation as measured on {calibration.device} with {calibration.recipe} in {calibration.precision}"
    else:
        network, decoder = ASSUMED[FORWARD].utilisation or 0, ASSUMED[DECODE].utilisation or 0
        lines = (
            f"Assumed: {network:.0%} of {prices.gpu.peak(settings.policy.precision) / 1e12:g} TFLOP/s "
            f"({prices.gpu.source}) in the network, {decoder:.0%} in the decoder; `branchgrpo calibrate RECIPE` "
            "measures them"
        )
    unknown, share = prices.unknown(), prices.trained_share
    lines += "".join(f". {model}: {_assumed(prices, model)}, assumed" for model in prices.scores_assumed())
    learner = settings.learner
    if not learner.learns_from_leaves and learner.skip_zero_advantage and not learner.kl_weight:
        lines += f". Of the rows that pruning leaves, {share:.0%} have an advantage"
        lines += " (assumed; `--from RUN` takes the share of a run)" if share == 1 else ""
    return lines + (f". Seconds of {', '.join(unknown)} aren't known, and left out" if unknown else "")


def _assumed(prices: Prices, model: str) -> str:
    """How fast a reward model is taken to be."""
    if cores := prices.cores_of(model):
        return f"{REWARD_CORE / 1e9:g} GFLOP/s on each of {cores} cores"
    precision = precision_on_gpu(model)
    return f"{ASSUMED_SCORING[precision].utilisation or 0:.0%} of {prices.gpu.peak(precision) / 1e12:g} TFLOP/s"


def write_layout(own: Planned, prices: Prices, gpus: int, recipe: Path, overrides: Sequence[str], file: Path) -> None:
    """Write a recipe that has `recipe` as its base, with the overrides of the command line and a layout."""
    settings, gpu = prices.settings, prices.gpu
    content = own.settings.model_dump()
    given = sorted(override.partition("=")[0] for override in overrides)
    wanted = [*given, *own.layout.changes(settings, resource(gpu)), *settings.automatic]
    names = dict.fromkeys(_written_as(name) for name in wanted)
    outermost = [name for name in names if not any(name.startswith(f"{section}.") for section in names)]
    changes = {name: reduce(operator.getitem, name.split("."), content) for name in outermost}
    written = (
        f"# {settings.name} on {gpus} x {gpu.name}: {own.layout.text}.\n"
        f"# As planned, an iteration takes {own.seconds:.3g} seconds and the run {hours(own, gpus):,.3g} "
        f"{unit_of_hours(gpu)}-hours; {own.limit.rpartition(' ')[0]} limits it.\n"
    )
    write_text(file, written + write_yaml({"base": _base(recipe, file), **changes}))


def _written_as(name: str) -> str:
    """A setting's dotted name; of one in a section that a recipe doesn't share with its base, the section's.

    An override such as `schedule.splits.0=4` has no dotted name in a recipe, where its last part would be a text.
    """
    section = name.partition(".")[0]
    return section if section in WHOLE_RECIPE else name


def _base(recipe: Path, file: Path) -> str:
    """How the recipe in `file` names its base."""
    if not recipe.exists() and (SHIPPED / f"{recipe}.yaml").is_file():
        return str(recipe)
    recipe = recipe / "recipe.yaml" if recipe.is_dir() else recipe
    return os.path.relpath(recipe.resolve(), file.resolve().parent)
