"""Falls of the held-out reward: they are told from noise, and undone (`evaluation.undo_falls`)."""

import math
from dataclasses import dataclass

import numpy as np

from ...proto.settings import RunSettings
from ...proto.tree import FloatArray
from . import evaluation_storage
from .change_log import from_now
from .checkpoints import copy_slowed, pace_of
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


def find_fall(folder: RunFolder, settings: RunSettings) -> Fall | None:
    """The newest evaluation as a fall; None if it isn't one, or if falls aren't to be undone."""
    wanted = settings.evaluation.undo_falls
    if not wanted or not (ranked := folder.best_checkpoints()):
        return None
    lines, weights = comparable(folder.lines("evaluations")), weights_of_best(settings)

    def scores(iteration: int) -> FloatArray:
        line = next(line for line in reversed(lines) if line["iteration"] == iteration)
        found = evaluation_storage.read_scores(folder.path / evaluation_file(line))
        return np.sum([weight * found[name] for name, weight in weights.items()], axis=0)

    newest, best = lines[-1]["iteration"], ranked[0]
    first, then, now = scores(lines[0]["iteration"]), scores(best), scores(newest)
    lost, error = then - now, (then - now).std(ddof=1) / math.sqrt(len(now)) if len(now) > 1 else math.inf
    gained = then.mean() - first.mean()
    if lost.mean() <= max(STANDARD_ERRORS * error, wanted.lost * gained, 0.0):
        return None
    return Fall(newest, best, float(then.mean()), float(now.mean()))


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
