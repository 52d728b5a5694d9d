"""What is wrong with a run, in words, each with the iteration from which on it was so.

Limits that the Prometheus alerts have too are the same, over iterations in place of minutes. A fall raises an alarm
sooner, because held-out prompts are the same each time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, pvariance

from ...proto.update_stats import logprob_limit
from .figures import Line, column, number
from .pages import figure

WINDOW = 5
"""Iterations whose mean is compared: prompts differ, so one alone says little."""
MIN_ITERATIONS = 15
"""Number of iterations after which a reward that hasn't risen is an alarm."""
EQUAL_SPREAD = 1e-6
"""Standard deviation of scores below which all leaves got the same."""


@dataclass(frozen=True)
class Alarm:
    """Something that a user should look at."""

    iteration: int
    title: str
    text: str


def alarms(
    metrics: Sequence[Line],
    evaluations: Sequence[Line],
    weights: Mapping[str, float],
    clip_range: float | None,
    *,
    stale: bool = False,
) -> list[Alarm]:
    """The alarms of a run, by iteration, with its lines of metrics and its evaluations that can be compared.

    `weights` are those of its rewards; `stale` runs learn from trees that older weights have sampled.
    """
    found = [
        *_not_risen(metrics, evaluations, weights),
        *_gamed(metrics, weights),
        *_collapsed(metrics),
        *_apart(metrics, clip_range, stale),
        *_clipped(metrics),
    ]
    return sorted(found, key=lambda alarm: alarm.iteration)


def _not_risen(metrics: Sequence[Line], evaluations: Sequence[Line], weights: Mapping[str, float]) -> Iterator[Alarm]:
    """At most two alarms for each trained reward: all leaves get the same; it has fallen, or is flat."""
    for name, weight in weights.items():
        if not weight:
            continue
        same, fallen = _same(metrics, name), _fallen(metrics, evaluations, name, weight)
        flat = None if same or fallen else _flat(metrics, name, weight)
        yield from (alarm for alarm in (same, fallen, flat) if alarm)


def _same(metrics: Sequence[Line], name: str) -> Alarm | None:
    equal = [std is not None and std < EQUAL_SPREAD for std in column(metrics, "rewards", name, "std")]
    if (first := _lasting(metrics, equal)) is None:
        return None
    value = next(line["rewards"][name].get("mean") for line in metrics if line["iteration"] == first)
    return Alarm(
        first,
        "All leaves get the same reward",
        f"From iteration {first} on, {WINDOW} times or more in a row, all leaves got the same {name} "
        f"({figure(number(value))} at first), so no edge had an advantage and nothing was learned. The task is solved, "
        "the reward is broken, or schedule.eta is too small for samples to differ.",
    )


def _fallen(metrics: Sequence[Line], evaluations: Sequence[Line], name: str, weight: float) -> Alarm | None:
    """An alarm if a reward has fallen: on held-out prompts, which stay the same, else on the sampled ones."""
    course = [(line["iteration"], value) for line in evaluations if (value := number(line.get(name))) is not None]
    where = "on held-out prompts " if course else ""
    course, limit = course or _means(metrics, name), 0.5 * _deviation(metrics, name)
    for at, value in course:
        if (course[0][1] - value) * (1 if weight > 0 else -1) > limit:
            return Alarm(
                at,
                "The reward has fallen",
                f"At iteration {at} {name} {where}is {figure(value)}, and it began at {figure(course[0][1])}: the fall "
                "is more than half a standard deviation of its leaves. Steps may be too large: return to an earlier "
                "checkpoint, with a lower learning rate or with learner.kl_weight.",
            )
    return None


def _means(metrics: Sequence[Line], name: str) -> list[tuple[int, float]]:
    """Iteration -> mean of the leaves' rewards over the window that ends there; the beginning while that is too few."""
    values = column(metrics, "rewards", name, "mean")
    begun = [value for value in values[:WINDOW] if value is not None]
    start = fmean(begun) if begun else 0.0
    return [(line["iteration"], start + change) for line, change in zip(metrics, _changes(values), strict=True)]


def _flat(metrics: Sequence[Line], name: str, weight: float) -> Alarm | None:
    means = [mean for mean in column(metrics, "rewards", name, "mean") if mean is not None]
    # A reward that compares the leaves of trees has the same mean always, and it can't rise.
    if len(means) < MIN_ITERATIONS or max(means) - min(means) < EQUAL_SPREAD:
        return None
    size = max(WINDOW, len(means) // 4)
    before, now = means[:size], means[-size:]
    rise = (fmean(now) - fmean(before)) * (1 if weight > 0 else -1)
    if rise > 2 * sqrt((pvariance(before) + pvariance(now)) / size):
        return None
    last = metrics[-1]["iteration"]
    return Alarm(
        last,
        "The reward is flat",
        f"{name} has not risen in {last} iterations: {figure(fmean(before))} in the first {size}, "
        f"{figure(fmean(now))} in the last {size}. If ratios stay at 1 to four digits, raise the learning rate. If "
        "most edges are skipped, leaves get equal scores: raise schedule.eta, or the leaves for each prompt.",
    )


def _gamed(metrics: Sequence[Line], weights: Mapping[str, float]) -> Iterator[Alarm]:
    rises = [_move(metrics, name, weight) for name, weight in weights.items() if weight]
    for name, weight in weights.items():
        if weight:
            continue
        falls = _move(metrics, name, -1.0)
        for i, fall in enumerate(falls):
            if fall > 0.5 and any(rise[i] > 0.5 for rise in rises):
                at = metrics[i]["iteration"]
                yield Alarm(
                    at,
                    "The reward may be gamed",
                    f"At iteration {at} the trained reward is half a standard deviation above where it began, and "
                    f"{name}, which is only watched, half a deviation below. Look at the pictures. Train on several "
                    "rewards, add learner.kl_weight, or return to an earlier checkpoint.",
                )
                break


def _move(metrics: Sequence[Line], name: str, direction: float) -> list[float]:
    """How far a reward is from where it began, at every iteration, in its first standard deviations."""
    size, sign = _deviation(metrics, name), 1 if direction > 0 else -1
    return [sign * change / size for change in _changes(column(metrics, "rewards", name, "mean"))]


def _deviation(metrics: Sequence[Line], name: str) -> float:
    """Standard deviation of the leaves' rewards at the beginning."""
    begun = [std for std in column(metrics[:WINDOW], "rewards", name, "std") if std is not None]
    return max(fmean(begun), EQUAL_SPREAD) if begun else 1.0


def _changes(values: Sequence[float | None]) -> list[float]:
    """Mean of the last iterations minus that of the first, at every iteration; 0 where there are too few."""
    first = [value for value in values[:WINDOW] if value is not None]
    found = []
    for i in range(len(values)):
        last = [value for value in values[max(0, i + 1 - WINDOW) : i + 1] if value is not None]
        enough = i + 1 >= 2 * WINDOW and first and last
        found.append(fmean(last) - fmean(first) if enough else 0.0)
    return found


def _collapsed(metrics: Sequence[Line]) -> Iterator[Alarm]:
    values = column(metrics, "diversity")
    begun = [value for value in values[:WINDOW] if value is not None]
    half = fmean(begun) / 2 if begun else 0.0
    for line, change in zip(metrics, _changes(values), strict=True):
        if change < -half < 0:
            at = line["iteration"]
            yield Alarm(
                at,
                "Diversity has collapsed",
                f"At iteration {at} the leaves of a tree differ by less than half of what they did at first "
                f"({2 * half:.3g}). Add learner.kl_weight, lower the learning rate, or raise schedule.eta.",
            )
            return


def _apart(metrics: Sequence[Line], clip_range: float | None, stale: bool) -> Iterator[Alarm]:
    """An alarm if sampler and learner disagree about log-probabilities.

    In a stale run they have the same weights in the first iteration alone: no other one is looked at.
    """
    limit = logprob_limit(clip_range)
    for line in metrics[:1] if stale else metrics:
        difference = number(line.get("logprob_abs_diff"))
        if difference is not None and difference > limit:
            at = line["iteration"]
            yield Alarm(
                at,
                "Log-probabilities are apart",
                f"At iteration {at} learner and sampler disagree by {difference:.2g} about log-probabilities; the "
                f"limit is {limit:.1g}. Ratios no longer start from 1, and no other figure can be trusted. Look for "
                "different precisions, or a policy adapter that draws noise.",
            )
            return


def _clipped(metrics: Sequence[Line]) -> Iterator[Alarm]:
    clipped = [value is not None and value > 0.5 for value in column(metrics, "clip_fraction")]
    if first := _lasting(metrics, clipped):
        yield Alarm(
            first,
            "Most edges are clipped",
            f"From iteration {first} on, more than half of the edges were beyond learner.clip_range, and gave no "
            "gradient. Lower the learning rate, or make fewer updates of an iteration.",
        )


def _lasting(metrics: Sequence[Line], holds: Sequence[bool]) -> int | None:
    """The iteration from which on something held, for as many as a window has; None if it never did."""
    for i in range(len(holds) - WINDOW + 1):
        if all(holds[i : i + WINDOW]):
            return int(metrics[i]["iteration"])
    return None
