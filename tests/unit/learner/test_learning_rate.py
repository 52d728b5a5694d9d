"""The learning rate of each update: it follows from the settings and from what is due, whatever became of it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.run.checkpoints import copy_slowed, written
from branchgrpo.learner.learner import Learner
from branchgrpo.rollout_workers.policies.load import load_policy
from gradients import Sample, update
from support import Settings

PEAK = 1e-3
SCHEDULE = "learner.optimizer.schedule"
COURSES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""Share of the peak by the share of the run's updates that were due."""


@pytest.fixture
def learner_with(run_settings: Settings) -> Callable[..., Learner]:
    def learner(changes: dict[str, Any]) -> Learner:
        settings = run_settings(changes)
        return Learner(load_policy(settings.policy), settings)

    return learner


@pytest.fixture
def rates(sample: Sample) -> Callable[..., list[float]]:
    def rates(learner: Learner, iterations: int, rewards: str = "random") -> list[float]:
        """The learning rate of each update of so many further iterations, over the peak."""
        prompts = ("1",) * learner.settings.trees_per_update
        trees = sample(learner.policy, learner.settings.schedule.build(), prompts=prompts, rewards=rewards)
        found = []
        for _ in range(iterations):
            for _ in range(learner.settings.learner.updates_per_iteration):
                found.append(update(learner, trees).learning_rate / PEAK)
            learner.publish()
        return found

    return rates


def saved(learner: Learner, folder: Path) -> Path:
    with written(folder) as temporary:
        learner.save(temporary)
    return folder


@pytest.mark.parametrize(("name", "expected"), [("constant", [0, 0.5, 1, 1]), ("linear", [0, 0.5, 1, 0.5])])
@pytest.mark.parametrize("passes", [1, 3])
def test_learning_rate_schedules(
    learner_with: Callable[..., Learner],
    rates: Callable[..., list[float]],
    name: str,
    expected: list[float],
    passes: int,
) -> None:
    learner = learner_with({SCHEDULE: name, "learner.optimizer.warmup_updates": 2, "learner.passes": passes})
    assert rates(learner, 2) == pytest.approx(expected)


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("changed", [{"learner.updates_per_iteration": 4}, {"learner.passes": 3}, {"iterations": 10}])
def test_a_changed_run_follows_its_new_course_at_once(
    course: str,
    changed: dict[str, int],
    learner_with: Callable[..., Learner],
    rates: Callable[..., list[float]],
    tmp_path: Path,
) -> None:
    begun = learner_with({"iterations": 6, SCHEDULE: course, "learner.updates_per_iteration": 2})
    assert rates(begun, 3) == pytest.approx([COURSES[course](i / 12) for i in range(6)])
    new = {"iterations": 6, SCHEDULE: course, "learner.updates_per_iteration": 2, **changed}
    resumed = learner_with(new)
    resumed.load(saved(begun, tmp_path / "checkpoint"))
    each, iterations = new["learner.updates_per_iteration"], new["iterations"]
    due = range(3 * each, iterations * each)
    assert rates(resumed, iterations - 3) == pytest.approx([COURSES[course](i / (iterations * each)) for i in due])


@pytest.mark.parametrize("course", COURSES)
def test_a_course_goes_on_after_a_fall_at_the_new_pace(
    course: str, learner_with: Callable[..., Learner], rates: Callable[..., list[float]], tmp_path: Path
) -> None:
    settings = {"iterations": 8, SCHEDULE: course, "learner.updates_per_iteration": 1}
    fell = learner_with(settings)
    rates(fell, 2)
    copy_slowed(saved(fell, tmp_path / "best"), tmp_path / "fall", 6, 0.5)
    undone = learner_with(settings)
    undone.load(tmp_path / "fall")
    assert rates(undone, 2) == pytest.approx([0.5 * COURSES[course](6 / 8), 0.5 * COURSES[course](7 / 8)])


@pytest.mark.parametrize(
    ("changes", "rewards"), [({"learner.passes": 4, "learner.trust": 1e-9}, "random"), ({}, "equal")]
)
def test_steps_that_are_not_made_hold_no_course_back(
    changes: dict[str, Any], rewards: str, learner_with: Callable[..., Learner], rates: Callable[..., list[float]]
) -> None:
    learner = learner_with({"iterations": 3, SCHEDULE: "linear", "learner.updates_per_iteration": 1, **changes})
    assert rates(learner, 3, rewards) == pytest.approx([1, 2 / 3, 1 / 3])
