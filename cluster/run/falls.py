"""Falls of the held-out reward: they are told from noise, and undone (`evaluation.undo_falls`)."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...proto.tree import FloatArray
from . import evaluation_storage
from .change_log import from_now
from .checkpoints import DamagedCheckpoint, check, copy_slowed, pace_of, set_aside
from .evaluation import comparable, evaluation_file, weights_of_best
from .folder import RunFolder

STANDARD_ERRORS = 3.0
"""A fall is a difference of more standard errors than this. By chance alone one evaluation in 700 exceeds them."""


@dataclass(frozen=True)
class Fall:
    """An evaluation far below the best one."""

    iteration: int
    """Iteration after which the evaluation was made."""
    best: int
    """Iteration of the best evaluation, whose checkpoint is there."""
    before: float
    """Mean reward of the best evaluation."""
    now: float
    """Mean reward of this evaluation."""


def find_fall(folder: RunFolder, settings: RunSettings, damaged: Callable[[Path, str], None]) -> Fall | None:
    """The newest evaluation as a fall; None if it isn't one, or if falls aren't to be undone.

    A best checkpoint that is damaged is set aside, `damaged` is called with its new path and the defect, and the next
    best is taken. One whose evaluation somebody has removed is passed over.
    """
    if not settings.evaluation.undo_falls:
        return None
    lines = comparable(folder.lines("evaluations"))
    for best in folder.best_checkpoints():
        try:
            fall = _fall_from(best, lines, folder.path, settings)
        except InputError as error:
            logging.getLogger(__name__).warning("%s; the next best evaluation is compared", error)
            continue
        if fall is None:
            return None
        try:
            check(folder.checkpoint(best))
        except DamagedCheckpoint as error:
            damaged(set_aside(folder.checkpoint(best)), str(error))
        else:
            return fall
    return None


def _fall_from(best: int, lines: Sequence[Mapping[str, Any]], run: Path, settings: RunSettings) -> Fall | None:
    """The newest of the evaluations' `lines` as a fall from that of iteration `best`.

    Raises InputError if the scores of one of the two can't be read.
    """
    wanted, weights = settings.evaluation.undo_falls, weights_of_best(settings)
    assert wanted

    def scores(line: Mapping[str, Any]) -> FloatArray:
        found = evaluation_storage.read_scores(run / evaluation_file(line))
        return np.sum([weight * found[name] for name, weight in weights.items()], axis=0)

    then, now = scores(next(line for line in reversed(lines) if line["iteration"] == best)), scores(lines[-1])
    lost, error = then - now, (then - now).std(ddof=1) / math.sqrt(len(now)) if len(now) > 1 else math.inf
    gained = then.mean() - sum(weight * lines[0][name] for name, weight in weights.items())
    if lost.mean() <= max(STANDARD_ERRORS * error, wanted.lost * gained, 0.0):
        return None
    return Fall(lines[-1]["iteration"], best, float(then.mean()), float(now.mean()))


def undo_fall(folder: RunFolder, settings: RunSettings, fall: Fall) -> float:
    """Make the checkpoint of the fall's iteration one of the best weights, with a lower pace, and return that.

    It is lower than that of the newest checkpoint, with which the run fell: that of the best may be from before other
    falls. The run continues from it once its processes are set up again. Raises OSError if there is no room.
    """
    wanted = settings.evaluation.undo_falls
    assert wanted
    best, back = (folder.checkpoint(iteration) for iteration in (fall.best, fall.iteration))
    pace = wanted.pace * pace_of(folder.checkpoint(folder.done))
    copy_slowed(best, back, fall.iteration, pace)
    return pace


def note_fall(folder: RunFolder, fall: Fall, pace: float) -> None:
    """Tell of an undone fall in changes.jsonl."""
    line = {"fell_from": fall.before, "to": fall.now, "best": fall.best, "pace": pace}
    folder.append("changes", {**from_now(fall.iteration), **line})
