"""`branchgrpo calibrate`: what this device does in a second, kept for plans."""

from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ...proto.atomic_files import must_be_new
from ...proto.errors import InputError
from ...proto.prompt import Prompt
from ...proto.prompts import first_prompt
from ...proto.settings import RunSettings
from ...proto.settings_errors import changed_settings
from ...reward_service.interface import reading
from ...reward_service.scorers import load_scorer, reward_models
from ..plan.calibration import FORWARD, TRAINED, Calibration, calibration_file
from ..plan.crowding import measure_slowdown
from ..plan.flops import Work, count_work
from ..plan.measuring import Batches, Measured, device_name, device_peak, learning_policy, measure, out_of_memory
from ..plan.shapes import pictures_per_prompt
from ..plan.sizes import sizes_here

BUSY_SECONDS = 1.0
"""Seconds for which other programs are looked at before anything is measured."""
MAX_BUSY = 0.2
"""Share of the cores that other programs may take without a warning."""


def calibrate(settings: RunSettings, console: Console, file: Path | None = None) -> Path:
    """Measure with what the recipe names, print it, and write it to the new `file`, or to the device's place, where it
    replaces an earlier one. Returns the file.

    Raises InputError for what can't be loaded, or doesn't fit the device's memory, and for a file that exists.
    """
    if file:
        must_be_new(file)
    settings, busy = sizes_here(settings), psutil.cpu_percent(interval=BUSY_SECONDS) / 100
    threads = settings.threads_of(settings.pools.rollout_workers)
    torch.set_num_threads(threads)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as progress:
        task = progress.add_task("loading")
        work, precision = _counted(settings, console), settings.policy.precision
        found: list[Measured] = []
        try:
            policy = learning_policy(settings)
            scorers = {
                model: reading(load_scorer(model, given[model], threads), given[model].reads)
                for model, given in reward_models(settings.rewards).items()
                if not (given[model].url or given[model].judge)
            }
            peak, source = device_peak(policy.device, precision)
            progress.update(task, description="measuring the rollout's rows")
            batches, pictures = calibration_batches(settings), pictures_per_prompt(settings.prompts)
            prompt = _prompt(settings)
            for measured in measure(policy, batches, work, peak, scorers, pictures=pictures, prompt=prompt):
                found.append(measured)
                progress.update(task, description=f"measured: {', '.join(own.work for own in found)}")
            name, cores, slowdown = device_name(policy.device), 0, 1.0
            if policy.device.type == "cpu":
                del policy, scorers
                progress.update(task, description="measuring while all cores work")
                cores, slowdown = measure_slowdown(_with_room(settings, found), threads)
        except Exception as error:
            if not out_of_memory(error):
                raise
            done = ", ".join(own.work for own in found) or "nothing"
            raise InputError(
                f"the device has no room for a single row, after measuring {done}; "
                "calibrate with a smaller picture, a LoRA, or learner.gradient_checkpointing"
            ) from error
    paces = {own.work: own.pace for own in found}
    calibration = Calibration(name, peak, source, precision, settings.name, paces, cores, slowdown)
    file = file or calibration_file(name)
    calibration.save(file)
    show(calibration, found, console)
    if busy > MAX_BUSY:
        console.print(
            f"Other programs took {busy:.0%} of the cores: what was measured takes less time on a quiet machine. "
            "Calibrate again when nothing else runs",
            style="yellow",
            highlight=False,
        )
    return file


def show(calibration: Calibration, found: list[Measured], console: Console) -> None:
    """Print what was measured as a table."""
    peak = f"{calibration.peak / 1e12:,.4g} TFLOP/s ({calibration.peak_source})"
    table = Table("", title=f"{calibration.device}, peak {peak}", title_justify="left")
    for column in ("items in a call", "seconds of the call", "ms an item", "of the peak", "GB"):
        table.add_column(column, justify="right")
    for own in found:
        count, seconds = list(own.seconds.items())[-1]
        share = "" if own.pace.utilisation is None else f"{own.pace.utilisation:.1%}"
        memory = f"{own.bytes[count] / 1e9:.2f}" if own.bytes else ""
        table.add_row(own.work, str(count), f"{seconds:.4g}", f"{1e3 * (own.pace.item or 0):.4g}", share, memory)
    console.print(table)
    if calibration.cores > 1:
        console.print(
            f"with all {calibration.cores} cores at work, passes take {calibration.slowdown:.2f} times as long"
        )


def _counted(settings: RunSettings, console: Console) -> Work | None:
    """The FLOPs of what is measured, if they can be counted: without the KL term, and with whole backward passes."""
    learner = settings.learner.model_copy(update={"kl_weight": 0.0, "keep_graph": False})
    try:
        return count_work(settings.model_copy(update={"learner": learner}))
    except InputError as error:
        console.print(f"seconds alone: {error}", markup=False, highlight=False)
        return None


def _prompt(settings: RunSettings) -> Prompt | None:
    """The first prompt to train on, with the fields and pictures that rewards read; None for one that can't be read."""
    try:
        return first_prompt(settings.prompts)
    except InputError:
        return None


def _with_room(settings: RunSettings, found: Iterable[Measured]) -> RunSettings:
    """The settings with the largest numbers of rows that were measured: for the recipe's there may be no memory."""
    rows = {own.work: max(own.seconds) for own in found}
    sizes = {"rollout.max_batch_rows": rows[FORWARD], "learner.rows_per_micro_batch": rows[TRAINED]}
    return changed_settings(settings, sizes)


def calibration_batches(settings: RunSettings) -> Batches:
    """The largest batches of a recipe."""
    return Batches(
        forward=settings.rollout.max_batch_rows,
        trained=settings.learner.rows_per_micro_batch,
        decode=settings.rollout.decode_batch,
        score={model: settings.pools.of_reward(model).batch_pictures for model in reward_models(settings.rewards)},
    )
