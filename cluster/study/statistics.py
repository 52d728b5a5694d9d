"""Means over seeds and ratios to a baseline, with 95 % intervals, where some values may only be bounds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
Values = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds."""

    value: float
    low: float = math.nan
    """Lower end of the 95 % interval; NaN with fewer than two values, or if the value is a bound."""
    high: float = math.nan
    bound: str = ""
    """`>` or `<` if the figure is known to be above, or below, the value; empty if it is the value."""

    def text(self, form: Callable[[float], str]) -> str:
        """The figure in words, such as `12 (10 to 14)`."""
        if math.isnan(self.value):
            return "–"
        low, high = form(self.low), form(self.high)
        known = not math.isnan(self.low) and low != high  # one of no width tells of the grid, not of certainty
        interval = f" ({low} to {high})" if known else ""
        return f"{self.bound}{' ' * bool(self.bound)}{form(self.value)}{interval}"


UNKNOWN = Estimate(math.nan)


def mean(values: Values) -> Estimate:
    """The mean with Student's interval, which assumes that the mean is normally distributed over seeds."""
    if len(values) == 0:
        return UNKNOWN
    centre = float(np.mean(values))
    if len(values) < 2:
        return Estimate(centre)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(centre, centre - half, centre + half)


def censored_mean(values: Values, reached: Sequence[bool]) -> Estimate:
    """The mean of efforts until something was reached. Where it wasn't, the value is the effort that was in vain; the
    mean is then a lower bound."""
    return mean(values) if all(reached) else Estimate(float(np.mean(values)), bound=">")


def ratio(base: Values, own: Values, base_reached: Sequence[bool], own_reached: Sequence[bool]) -> Estimate:
    """The mean of `base` over that of `own`, with a bootstrap interval over seeds, resampled with a fixed seed.

    Efforts in vain make it a bound: of `own` an upper one, of `base` a lower one, of both nothing is known. Neither is
    it for an `own` of nothing: what was there before training.
    """
    if not len(base) or not any(own) or not (all(base_reached) or all(own_reached)):
        return UNKNOWN
    value = float(np.mean(base) / np.mean(own))
    if not all(base_reached) or not all(own_reached):
        return Estimate(value, bound="<" if all(base_reached) else ">")
    if min(len(base), len(own)) < 2:
        return Estimate(value)
    found = stats.bootstrap(
        (np.asarray(base), np.asarray(own)),
        lambda one, other, axis: one.mean(axis=axis) / other.mean(axis=axis),
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))
