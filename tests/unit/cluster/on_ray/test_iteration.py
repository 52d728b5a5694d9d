"""The trees of an iteration on Ray, without Ray: what ends it, and who gets which tree."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from branchgrpo.cluster.on_ray.iteration import GrowingTree, Iteration
from branchgrpo.cluster.on_ray.messages import PublishedWeights, WeightsRef
from branchgrpo.cluster.on_ray.part_reader import ArrivedPart
from branchgrpo.cluster.run.planner import Plan
from branchgrpo.proto.errors import RunFailed
from branchgrpo.proto.remote_tree import PartHeader
from branchgrpo.proto.scoring import ScoreReply
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.tree import Task, Window
from branchgrpo.proto.usage import Usage

Settings = Callable[..., RunSettings]


async def nothing(iteration: Iteration, task: Task) -> None:
    """Leaves it to the test to bring trees."""


def begun(settings: RunSettings, sample: Callable[[Iteration, Task], Any] = nothing) -> Iteration:
    """An iteration of two tasks with two trees each."""
    plan = Plan(1, settings.schedule.build(), ["a", "b", "c", "d"], [0, 1, 2, 3])
    return Iteration(plan, settings, PublishedWeights(0, WeightsRef(0, None)), sample)


def whole(tree: GrowingTree) -> GrowingTree:
    """A tree that has arrived in one part, scored."""
    schedule = tree.schedule
    leaves = np.arange(schedule.first_node[-2], schedule.nodes)
    logprobs = np.zeros(schedule.nodes, np.float32)
    header = PartHeader(tree.number, np.arange(schedule.nodes), logprobs, leaves, (), 0.5)
    tree.add(ArrivedPart("pictures", "states", header), shown=True)
    assert not tree.complete
    tree.add_scores(header, ScoreReply({"ocr": np.ones(len(leaves))}, "request"))
    assert tree.complete
    return tree


def test_the_first_error_ends_the_other_tasks_and_is_raised(run_settings: Settings) -> None:
    ended = []

    async def sample(iteration: Iteration, task: Task) -> None:
        if task.trees == (2, 3):
            raise RunFailed("no score") from ValueError("its cause")
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(task.trees)

    async def sampled() -> None:
        await begun(run_settings(), sample).sampled()

    with pytest.raises(RunFailed, match="no score") as raised:
        asyncio.run(sampled())
    assert isinstance(raised.value.__cause__, ValueError)
    assert ended == [(0, 1)]


def test_a_tree_is_handed_over_once_however_often_it_is_sampled(run_settings: Settings) -> None:
    async def handed_over() -> None:
        iteration = begun(run_settings())
        task = iteration.tasks[0]
        first, again = iteration.growing(task), iteration.growing(task)
        iteration.completed(whole(first[1]))
        await iteration.ready(Window(1, [1], closes_update=False))
        assert list(iteration.growing(task)) == [0]
        tree = iteration.hand_over(1)
        assert (tree.number, tree.prompt, [states for _, states in tree.parts]) == (1, "b", ["states"])
        assert iteration.media == {1: ["pictures"]}
        iteration.completed(whole(again[1]))
        with pytest.raises(KeyError):
            iteration.hand_over(1)
        assert list(iteration.growing(task)) == [0]

    asyncio.run(handed_over())


def test_who_stops_waiting_for_a_window_leaves_it_to_others(run_settings: Settings) -> None:
    async def waited_for() -> None:
        iteration, window = begun(run_settings()), Window(1, [0], closes_update=False)
        patient, impatient = (asyncio.create_task(iteration.ready(window)) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait([impatient])
        for tree in iteration.growing(iteration.tasks[0]).values():
            iteration.completed(whole(tree))
        await patient

    asyncio.run(waited_for())


def test_trees_are_left_out_up_to_the_allowed_share(run_settings: Settings) -> None:
    async def left_out() -> None:
        iteration = begun(run_settings({"rollout.max_unscored_fraction": 0.25}))
        assert iteration.leave_out(2, ValueError("no score"))
        assert iteration.leave_out(2, ValueError("of another part"))
        assert not iteration.leave_out(3, ValueError("no score"))
        await iteration.ready(Window(1, [2], closes_update=False))
        assert iteration.hand_over(2).left_out
        assert len(iteration.scored()) == 3

    asyncio.run(left_out())


@pytest.mark.parametrize(
    ("computed", "held_up"),
    [(12.0, 8.0), (4.0, 14.0), (25.0, 0.0)],
    ids=["computed while its parts waited", "paused at once", "clocks apart"],
)
def test_workers_are_held_up_while_they_compute_nothing(
    run_settings: Settings, computed: float, held_up: float
) -> None:
    """Two tasks of ten seconds each, of which the controller waited for room in scoring for seven."""

    async def seconds() -> float:
        iteration = begun(run_settings())
        iteration.timeline.spans["rollout"] = [[0.0, 10.0], [5.0, 15.0]]
        iteration.task_seconds = {(0, 1): 3.0, (2, 3): 3.0}
        iteration.spent("rollout", Usage(computed))
        return iteration.held_up_seconds

    assert asyncio.run(seconds()) == held_up
