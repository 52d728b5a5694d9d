"""Numbers for the sizes that a recipe leaves to `auto`: batches that fit the device and are fast on it, and the trees
of a task and of a window with which an iteration is shortest.

They are chosen once, before a run begins. Any of them gives the same result but for the last bits of sums.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...proto.settings_errors import changed_settings, named_settings
from ..run.folder import RunFolder
from .calibration import DECODE as DECODING
from .calibration import FORWARD, TRAINED
from .costs import Cluster, given_pools
from .device import Device, device_here, host_share
from .fit import remedies, room
from .forecast import forecast
from .memory import DECODE, LEARNER, ROLLOUT, Memory, count_memory
from .prices import Prices

TASK, WINDOW = "rollout.trees_per_task", "learner.window_trees"
WORK = {ROLLOUT: FORWARD, DECODE: DECODING, LEARNER: TRAINED}
"""Setting with a number of rows -> the kind of work that has so many."""
TIE = 0.01
"""Share of an iteration, or of a row's seconds, that doesn't decide; the larger number then wins."""
Numbers = dict[str, int]
"""Setting -> its number."""


def choose_sizes(settings: RunSettings, device: Device) -> RunSettings:
    """The settings with numbers in place of `auto`. Raises InputError if no row fits, or as `measure` does."""
    if not settings.automatic:
        return settings
    prices = Prices.of(settings, device)
    tried = [changed_settings(settings, numbers) for numbers in _candidates(settings, prices)]
    if not tried:
        raise InputError(_nothing_fits(settings, prices))
    if len(tried) == 1:
        return tried[0]
    seconds = [forecast(own, prices).seconds for own in tried]
    close = [own for own, taken in zip(tried, seconds, strict=True) if taken <= (1 + TIE) * min(seconds)]
    return max(close, key=lambda own: (own.rollout.trees_per_task, own.learner.window_trees))


def sizes_here(settings: RunSettings) -> RunSettings:
    """The settings with numbers for one process on this machine, which does what is asked of it by itself.

    Raises InputError as `device_here` and `choose_sizes` do.
    """
    if not settings.automatic:
        return settings
    alone = settings.model_copy(update={"execution": "in_process"})
    chosen = choose_sizes(alone, device_here(alone))
    return changed_settings(settings, named_settings(chosen, settings.automatic))


def same_sizes(settings: RunSettings, run: Path) -> RunSettings:
    """The settings with the numbers of the run in a folder in place of `auto`, so that it continues bit for bit."""
    if not settings.automatic or not (run / "recipe.yaml").is_file():
        return settings
    return changed_settings(settings, named_settings(RunFolder(run).settings, settings.automatic))


def _candidates(settings: RunSettings, prices: Prices) -> Iterator[Numbers]:
    """Numbers of trees, each with the rows that fit beside them."""
    most = {TASK: settings.prompts.per_iteration, WINDOW: settings.trees_per_update}
    open_ = [name for name in most if name in settings.automatic]
    for trees in product(*(_doublings(most[name]) for name in open_)):
        numbers = dict(zip(open_, trees, strict=True))
        rows = _rows(changed_settings(settings, numbers), prices)
        if all(rows.values()):
            yield numbers | rows


def _doublings(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n < most] + [most]


def _rows(settings: RunSettings, prices: Prices) -> Numbers:
    """Numbers of rows for the settings that are still open; 0 if none fits."""
    schedule, ranks = settings.schedule.build(), settings.pools.learner.count if settings.execution == "ray" else 1
    trees = min(settings.rollout.trees_per_task, settings.prompts.per_iteration)
    leaves = trees * schedule.leaves
    learner = settings.learner
    each = schedule.leaves * learner.nft.noise_levels if learner.learns_from_leaves else schedule.rows
    useful = {ROLLOUT: leaves, DECODE: leaves, LEARNER: math.ceil(learner.window_trees * each / ranks)}
    chosen: Numbers = {}
    for name in useful:  # the rollout's rows first, which bound those that are decoded
        if name in settings.automatic:
            own = changed_settings(settings, chosen)
            fits = min(_fitting(own, name, prices), useful[name])
            chosen[name] = _fastest(fits, prices.calibration.pace(WORK[name]).calls)
    return chosen


def _fitting(settings: RunSettings, name: str, prices: Prices) -> int:
    """The largest number of rows of a setting that fits each process that has it."""
    memories = count_memory(settings)
    rows = [
        memory.phases[name].taken.rows(_room(memory, memories, settings, prices) - memory.held)
        for memory in memories.values()
        if name in memory.phases
    ]
    return min(rows)


def _room(memory: Memory, memories: Mapping[str, Memory], settings: RunSettings, prices: Prices) -> float:
    if memory.gpus and prices.gpu.name != "cpu":
        return room(memory, prices.gpu.memory)
    if settings.execution == "in_process":
        return host_share(1)
    cluster, pools = Cluster.of(settings), given_pools(settings).values()
    return host_share(cluster.workers + cluster.ranks + sum(pool.replicas for pool in pools))


def _fastest(most: int, calls: Mapping[int, float]) -> int:
    """The largest number of rows up to `most`, or one that was measured and takes less time for each row."""
    measured = {count: seconds / count for count, seconds in calls.items() if count <= most}
    if not measured:
        return most
    quickest = min(measured.values())
    best = max(count for count, seconds in measured.items() if seconds <= (1 + TIE) * quickest)
    return most if best == max(measured) else best


def _nothing_fits(settings: RunSettings, prices: Prices) -> str:
    told = f"{', '.join(settings.automatic)} can't be chosen: not a single row fits the memory of {prices.gpu.device}"
    changes = None if prices.gpu.name == "cpu" else remedies(settings, prices.gpu.memory)
    if not changes:
        return told
    return told + "; it fits with " + " ".join(f"{name}={value}" for name, value in changes.items())
