"""How an iteration is cut up, by known answers."""

from collections.abc import Callable

import pytest
from branchgrpo.cluster.run.cuts import groups, training_tasks, windows
from branchgrpo.proto.settings import RunSettings


def test_groups_are_consecutive_and_the_last_may_be_smaller() -> None:
    assert groups(7, 3) == [range(3), range(3, 6), range(6, 7)]
    assert groups(0, 3) == []


def test_tasks_hold_every_tree_once(run_settings: Callable[..., RunSettings]) -> None:
    settings = run_settings({"rollout.trees_per_task": 3})
    tasks = training_tasks(settings, 5, ["a", "b", "c", "d"], settings.schedule.build(), version=4)
    assert [(task.trees, task.prompts) for task in tasks] == [((0, 1, 2), ("a", "b", "c")), ((3,), ("d",))]
    assert {(task.iteration, task.weights_version) for task in tasks} == {(5, 4)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learner.window_trees": 5}, [(0, 5, False), (5, 10, False), (10, 12, True), (12, 17, False)]),
        ({"learner.window_trees": 100}, [(0, 12, True), (12, 24, True)]),
        ({"learner.updates_per_iteration": 1, "learner.keep_graph": True}, [(0, 24, True)]),
    ],
    ids=["several to an update", "one", "kept graphs"],
)
def test_no_window_holds_trees_of_two_updates(
    changes: dict[str, object], expected: list[tuple[int, int, bool]], run_settings: Callable[..., RunSettings]
) -> None:
    cut = list(windows(run_settings({"prompts.per_iteration": 24, **changes}), 3))
    found = [(window.trees[0], window.trees[-1] + 1, window.closes_update) for window in cut]
    assert found[: len(expected)] == expected
    assert [tree for window in cut for tree in window.trees] == list(range(24))
    assert {window.iteration for window in cut} == {3}
