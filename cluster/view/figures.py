"""Figures of a run that several pages show: rewards before and now, by iteration, seconds, forward passes."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

from ..run.evaluation import MADE_WITH, comparable
from .runs import Run

Line = Mapping[str, Any]
Value = TypeVar("Value")
NO_REWARDS = ("iteration", MADE_WITH, "diversity")
"""Keys of a line of evaluations.jsonl beside the rewards."""


def number(value: Any) -> float | None:
    """A number that can be shown; None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def column(lines: Sequence[Line], *keys: str) -> list[float | None]:
    """A figure of every line, which the keys lead to; None where it isn't."""
    found = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        found.append(number(value))
    return found


def weights(run: Run) -> dict[str, float]:
    """Reward -> its weight, as the recipe names them."""
    rewards = run.recipe.get("rewards")
    if not isinstance(rewards, Mapping):
        return {}
    given = {str(name): own.get("weight", 1.0) if isinstance(own, Mapping) else 1.0 for name, own in rewards.items()}
    return {name: number(weight) or 0.0 for name, weight in given.items()}


def main_reward(weighted: Mapping[str, float], lines: Sequence[Line]) -> str | None:
    """The reward with the largest weight, among those that the lines of an evaluations.jsonl have, if they have any."""
    seen = {name for line in lines for name in line if name not in NO_REWARDS}
    names = [name for name in weighted if name in seen] or [*weighted] or sorted(seen)
    return max(names, key=lambda name: abs(weighted.get(name, 0.0)), default=None)


def thinned(values: Sequence[Value], count: int) -> list[Value]:
    """At most `count` of some values (2 or more), at equal distances, with the first and the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def alike(evaluations: Sequence[Line]) -> list[Line]:
    """The evaluations that can be compared with the newest."""
    try:
        return comparable(evaluations)
    except (AttributeError, TypeError):  # made by another version, or by no run
        return list(evaluations)


def courses(metrics: Sequence[Line]) -> dict[str, list[float]]:
    """What a curve may be drawn over -> its value after every iteration: iterations, seconds, forward passes."""
    return {
        "iterations": [float(line["iteration"]) for line in metrics],
        "seconds": list(accumulate(value or 0.0 for value in column(metrics, "seconds"))),
        "forward passes": list(accumulate(value or 0.0 for value in column(metrics, "forward_passes"))),
    }
