"""What the run folders of a study say: the held-out reward of every run after so much effort."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..run.evaluation import comparable
from ..run.state import read_state
from .file import Study
from .timing import seconds_per_iteration
from .trials import Trial

AXES = {
    "seconds": "seconds",
    "forward_passes": "forward passes",
    "iterations": "iterations",
    "rows": "trained rows",
}
"""Measures of effort -> their names in the report."""
BROKEN_STATES = ("failed", "lost", "unreadable")
"""States of a run that isn't finished and that nobody works at, nor has stopped on purpose."""
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, in order."""

    trial: Trial
    state: str
    error: str | None = None
    reward: Array = field(default_factory=lambda: np.empty(0))
    effort: Mapping[str, Array] = field(default_factory=dict)
    """Measure of effort -> how much of it was spent before each evaluation, float64 [evaluations]. Without `seconds`
    where they aren't measured."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """The lines of its iterations."""
    diversity: Array = field(default_factory=lambda: np.empty(0))
    """Diversity of the held-out pictures of a prompt at each evaluation; empty if prompts have one picture."""

    @property
    def name(self) -> str:
        return self.trial.settings.name

    def at(self, axis: str, effort: float | Array) -> Array:
        """The reward after some effort, linear between evaluations; NaN where the run hasn't got so far."""
        if axis not in self.effort or not len(self.reward):
            return np.full(np.shape(effort), np.nan)
        return np.interp(np.asarray(effort), self.effort[axis], self.reward, right=np.nan)

    def until(self, axis: str, target: float) -> tuple[float, bool]:
        """The effort before the first evaluation at or above a target, and whether there is one; if not, all effort."""
        reached = np.flatnonzero(self.reward >= target)
        return float(self.effort[axis][reached[0] if len(reached) else -1]), bool(len(reached))


def read_curve(study: Study, trial: Trial) -> Curve:
    """The curve of a run as far as it has got; an empty one if its folder can't be read."""
    if trial.state == "not started":
        return Curve(trial, "not started")
    try:
        return _read(study, trial)
    except (OSError, ValueError, LookupError, TypeError) as error:
        return Curve(trial, "unreadable", f"{type(error).__name__}: {error}")


def _read(study: Study, trial: Trial) -> Curve:
    """The curve of a run within its budget, of the evaluations that it was to make: one that was taken over may have
    continued for longer, and been evaluated more often, which finds a target sooner."""
    folder, reward, last = trial.folder, study.file.reward, trial.settings.iterations
    every = trial.settings.evaluation.every
    metrics = [line for line in folder.lines("metrics") if line["iteration"] <= last]
    evaluations = [line for line in comparable(folder.lines("evaluations")) if line["iteration"] <= last]
    at = {own: line for line in evaluations if (own := line["iteration"]) == last or own % every == 0}
    lines = [at[iteration] for iteration in sorted(at)]
    done = np.array([line["iteration"] for line in lines], dtype=int)
    effort = {"iterations": done.astype(float)}
    for axis in ("forward_passes", "rows"):
        spent = np.cumsum([0.0, *(line[axis] for line in metrics)])
        effort[axis] = spent[done]
    each = seconds_per_iteration(study, trial.settings)
    if each is not None:
        effort["seconds"] = done * each
    error = read_state(folder.path).get("error")
    diversity = np.array([line["diversity"] for line in lines if "diversity" in line])
    return Curve(trial, trial.state, error, np.array([line[reward] for line in lines]), effort, metrics, diversity)
