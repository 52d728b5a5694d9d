"""Intervals and ratios: known answers, and bounds where some runs never arrived."""

import math

import numpy as np
import pytest
from branchgrpo.cluster.study.statistics import UNKNOWN, censored_mean, mean, ratio

YES, NO = [True] * 3, [False] * 3


def test_mean_has_students_interval() -> None:
    found = mean([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # the 97.5 % quantile with two degrees of freedom; the deviation is 1
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))
    assert mean([2.0]).text(str) == "2.0"
    assert mean([]) == UNKNOWN


def test_efforts_in_vain_make_bounds() -> None:
    assert censored_mean([2.0, 4.0, 9.0], [True, True, False]).text(str) == "> 5.0"
    assert censored_mean([2.0, 4.0, 9.0], NO).text(str) == "> 5.0"
    assert censored_mean([], []) == UNKNOWN
    some = [True, False, True]
    assert ratio([6.0, 6.0, 6.0], [2.0, 2.0, 2.0], YES, some).text(str) == "< 3.0"
    assert ratio([6.0, 6.0, 6.0], [2.0, 2.0, 2.0], some, YES).text(str) == "> 3.0"
    assert ratio([6.0] * 3, [2.0] * 3, YES, NO).text(str) == "< 3.0"
    assert ratio([6.0] * 3, [2.0] * 3, some, some) == ratio([], [2.0], [], [True]) == UNKNOWN


def test_ratio_is_resampled_with_a_fixed_seed() -> None:
    base, own = [10.0, 12.0, 14.0], [2.0, 3.0, 4.0]
    found = ratio(base, own, YES, YES)
    assert found == ratio(base, own, YES, YES)
    assert found.value == 4
    assert 10 / 4 <= found.low < 4 < found.high <= 14 / 2


def test_ratio_covers_the_truth_about_as_often_as_said() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(40):
        found = ratio(rng.normal(10, 1, 20), rng.normal(5, 1, 20), [True] * 20, [True] * 20)
        inside += found.low <= 2 <= found.high
    assert inside >= 33
