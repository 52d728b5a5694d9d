"""The simulation of a run against a real one."""

import pytest
from branchgrpo.benchmarks.scaling.validation import SETTINGS, compare


def test_a_real_run_takes_as_long_as_the_simulated_one() -> None:
    """Loosely: other tests may be going on beside it."""
    for comparison in compare(SETTINGS[0], workers=(1, 2), rounds=1):
        assert comparison.ratio == pytest.approx(1, abs=0.25), comparison
