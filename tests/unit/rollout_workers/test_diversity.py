"""How much pictures of one prompt differ, against NumPy's own deviation."""

import numpy as np
import pytest
from branchgrpo.proto.methods import branch_grpo
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import Task
from branchgrpo.rollout_workers.diversity import Diversity
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.worker import RolloutWorker

MEDIA = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)


def diversity(*parts: np.ndarray) -> float:
    counted = Diversity()
    for part in parts:
        counted.add(part)
    return counted.value()


def test_it_is_the_root_mean_square_of_the_deviation() -> None:
    expected = np.sqrt((MEDIA / 255).var(axis=0, ddof=1).mean())
    assert diversity(MEDIA) == pytest.approx(expected, rel=1e-12)


def test_parts_and_their_order_change_nothing() -> None:
    assert diversity(MEDIA[3:], MEDIA[:1], MEDIA[1:3]) == diversity(MEDIA)


def test_equal_pictures_and_a_single_one_have_none() -> None:
    assert diversity(MEDIA[:1]) == diversity(np.repeat(MEDIA[:1], 5, axis=0)) == 0


@pytest.mark.parametrize("limit", [2, 64])
def test_the_last_part_of_a_tree_tells_that_of_all_its_leaves(tiny_policy: Policy, limit: int) -> None:
    schedule = branch_grpo(steps=5, splits={0: 2, 2: 2}, eta=0.7)
    worker = RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=limit))
    parts = list(worker.sample(Task(1, (0, 1), ("123", "456"), schedule, seed=7)))
    for tree in (0, 1):
        *others, last = [part for part in parts if part.tree == tree]
        assert all(part.diversity is None for part in others)
        assert last.diversity == diversity(*(part.media.pictures for part in (*others, last))) > 0
