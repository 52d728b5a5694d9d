"""Seconds of phases, also of those that still go on."""

import time
from types import SimpleNamespace

import pytest
from branchgrpo.cluster.run import phases
from branchgrpo.cluster.run.phases import Timeline


def test_seconds_count_overlaps_once_and_open_spans_until_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "time", SimpleNamespace(time=lambda: 10.0))
    times = Timeline({"rollout": [[0, 4], [2, 5], [8, float("inf")]], "scoring": [[4, 7], [9, 9.5]]})
    assert times.seconds("rollout") == 7
    assert times.seconds("scoring") == 3.5
    assert times.seconds("rollout", "scoring") == 9
    assert times.hidden("scoring", behind="rollout") == pytest.approx(1.5 / 3.5)
    assert times.seconds("learning") == times.hidden("learning", behind="rollout") == 0


def test_a_phase_counts_while_it_goes_on_and_no_longer() -> None:
    times = Timeline()
    with times.phase("learning"):
        time.sleep(0.01)
        begun = times.seconds("learning")
    ended = times.seconds("learning")
    time.sleep(0.01)
    assert 0 < begun <= ended == times.seconds("learning")
