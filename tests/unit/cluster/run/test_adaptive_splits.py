"""Splits that move to where siblings differ: by hand, as a game with a known answer, and in runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.cluster.run.adaptive_splits import SplitChooser, sibling_variance
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.methods import branch_grpo
from branchgrpo.proto.schedule import Schedule, tree_schedule
from branchgrpo.proto.settings import RunSettings
from support import Settings

ADAPT = {"schedule": {"steps": 12, "splits": {0: 2, 3: 2, 6: 2}, "adapt": {}}}


def test_sibling_variance_by_hand() -> None:
    schedule = tree_schedule(4, kernel="dance", eta=0.5, splits={0: 2, 2: 3})
    leaves = np.array([1.0, 2.0, 6.0, 0.0, 0.5, 1.0])
    total = leaves.var(ddof=1)
    expected = {0: np.var([3.0, 0.5], ddof=1) / total, 2: (7.0 + 0.25) / 2 / total}
    assert sibling_variance(schedule, [leaves]) == pytest.approx(expected)
    halved = {step: value / 2 for step, value in expected.items()}
    assert sibling_variance(schedule, [leaves, np.full(6, 0.3)]) == pytest.approx(halved)


def rewards(schedule: Schedule, gains: dict[int, float], rng: np.random.Generator) -> np.ndarray:
    """Rewards of a tree's leaves, where the noise at each step counts as much as `gains` says."""
    value = np.zeros(1)
    for level, step in zip(schedule.levels, schedule.steps, strict=False):
        value = np.repeat(value, step.children)
        value = value + gains.get(int(level), 0.0) * rng.normal(size=len(value))
    return value


def played(settings: RunSettings, iterations: int, gains: dict[int, float]) -> list[Schedule]:
    branching, rng, schedules = SplitChooser(settings), np.random.default_rng(0), []
    for iteration in range(1, iterations + 1):
        schedules.append(branching.schedule(iteration))
        trees = [{"ocr": rewards(schedules[-1], gains, rng), "ocr_exact": np.zeros(8)} for _ in range(16)]
        branching.record(iteration, schedules[-1], trees)
    return schedules


def test_splits_move_to_where_the_reward_is_decided(run_settings: Settings) -> None:
    settings = run_settings(ADAPT)
    gains = {1: 1.0, 7: 1.0, 8: 1.0, 4: 0.1}
    schedules = played(settings, 60, gains)
    assert list(schedules[0].splits) == [0, 3, 6]
    late = [step for schedule in schedules[20:] for step in schedule.splits]
    found = sum(step in (1, 7, 8) for step in late) / len(late)
    assert found > 0.6  # at random it would be 3 of 11
    assert {step for schedule in schedules for step in schedule.splits} == set(range(11))  # each was tried
    budget = schedules[0].forward_passes
    assert all(schedule.forward_passes <= budget and schedule.leaves == 8 for schedule in schedules)
    assert played(settings, 60, gains) == schedules


def test_the_budget_holds_though_a_window_slides(run_settings: Settings) -> None:
    mix = {
        "method": "branch_grpo_mix",
        "steps": 12,
        "window": 2,
        "window_stride": 2,
        "window_every": 3,
        "ode_stride": 3,
    }
    settings = run_settings({"schedule": {**mix, "splits": {0: 2, 3: 2, 6: 2}, "adapt": {}}})
    schedules = played(settings, 20, {1: 1.0, 5: 1.0})
    assert max(schedule.forward_passes for schedule in schedules) <= schedules[0].forward_passes
    assert len({tuple(schedule.splits) for schedule in schedules}) > 3


def test_a_budget_bounds_every_tree_and_may_be_too_small(run_settings: Settings) -> None:
    cheapest = branch_grpo(steps=12, splits={8: 2, 9: 2, 10: 2}).forward_passes
    settings = run_settings({"schedule": {**ADAPT["schedule"], "adapt": {"forward_passes": cheapest}}})
    assert {tuple(schedule.splits) for schedule in played(settings, 4, {})[1:]} == {(8, 9, 10)}
    many = {"schedule": {"steps": 60, "splits": {0: 2, 1: 2, 2: 2, 3: 2}, "adapt": {}}}
    with pytest.raises(InputError, match="choose from 455126 places for 4 splits in 59 steps"):
        SplitChooser(run_settings(many))
    with pytest.raises(InputError, match=f"forward_passes is {cheapest - 1}; the cheapest .* takes {cheapest}"):
        SplitChooser(run_settings({"schedule": {**ADAPT["schedule"], "adapt": {"forward_passes": cheapest - 1}}}))


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_checkpoint_goes_on_with_the_same_schedules(staleness: int, run_settings: Settings, tmp_path: Path) -> None:
    """With staleness, a run that goes on has decided the next schedule before it learns; one that resumes, after."""
    settings = run_settings({**ADAPT, "execution": "ray", "staleness": staleness})
    branching, rng, schedules = SplitChooser(settings), np.random.default_rng(0), {1: None}
    schedules[1] = branching.schedule(1)
    for iteration in range(1, 12):
        if staleness:
            schedules[iteration + 1] = branching.schedule(iteration + 1)
        tree = {"ocr": rewards(schedules[iteration], {2: 1.0}, rng), "ocr_exact": np.zeros(8)}
        branching.record(iteration, schedules[iteration], [tree])
        (tmp_path / str(iteration)).mkdir()
        branching.save(tmp_path / str(iteration))
        if not staleness:
            schedules[iteration + 1] = branching.schedule(iteration + 1)
    for iteration in (1, 4, 10):
        resumed = SplitChooser(settings)
        resumed.load(tmp_path / str(iteration))
        assert resumed.schedule(iteration + 1) == schedules[iteration + 1]


def test_a_run_with_moving_splits_goes_on_bit_by_bit(run_settings: Settings, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"schedule": {"steps": 6, "splits": {0: 2, 2: 2}, "eta": 0.7, "adapt": {}}}
    settings = run_settings({**changes, "iterations": 4, "threads": 1})
    prompts = ["123", "456", "789", "012"]

    def iterated(loop: InProcessLoop, numbers: range) -> list[int]:
        return [loop.iterate(number).forward_passes for number in numbers]

    straight, first, resumed = (InProcessLoop(settings, prompts) for _ in range(3))
    passes = iterated(straight, range(1, 5))
    assert len(set(passes)) > 1
    assert max(passes) == passes[0]
    iterated(first, range(1, 3))
    first.save(tmp_path / "checkpoint")
    resumed.load(tmp_path / "checkpoint")
    assert iterated(resumed, range(3, 5)) == passes[2:]
    for name, value in straight.learner.weights().items():
        assert torch.equal(resumed.learner.weights()[name], value)
