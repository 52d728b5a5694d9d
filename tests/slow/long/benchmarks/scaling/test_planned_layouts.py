"""Planned layouts against real runs."""

import pytest
from branchgrpo.benchmarks.scaling.planned_layouts import SETTING, five_layouts
from branchgrpo.benchmarks.scaling.validation import real_seconds


def test_the_fastest_planned_layout_is_faster_than_the_fifth() -> None:
    """Loosely: other tests may be going on beside it."""
    planned = five_layouts(SETTING.recipe(1, 3), SETTING.costs)
    best, fifth = (real_seconds(settings, rounds=2) for _, _, settings in (planned[0], planned[4]))
    assert best < fifth
    for real, (_, seconds, _) in zip((best, fifth), (planned[0], planned[4]), strict=True):
        assert seconds == pytest.approx(real, rel=0.35)
