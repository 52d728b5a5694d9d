"""Fusion, advantages and edge weights against hand-computed trees and brute force."""

import itertools
import math

import numpy as np
import pytest
from branchgrpo.learner.advantages import depth_advantages, edge_weights
from branchgrpo.learner.fusion import fuse
from branchgrpo.proto.schedule import Schedule, tree_schedule
from hypothesis import given, settings
from hypothesis import strategies as st

# Two splits, one uneven in K: nodes 0 | 1 2 | 3 4 | 5..10 | 11..16 (the last step is deterministic)
SMALL = tree_schedule(4, kernel="dance", eta=0.5, splits={0: 2, 2: 3})
LEAVES = np.array([1.0, 2.0, 6.0, 0.0, 0.5, 1.0])

schedules = st.builds(
    lambda roots, splits: tree_schedule(6, kernel="dance", eta=0.5, roots=roots, splits=splits),
    st.integers(1, 3),
    st.dictionaries(st.integers(0, 4), st.integers(2, 3), min_size=1, max_size=3),
)


def random_tree(schedule: Schedule, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=schedule.leaves), rng.normal(size=schedule.nodes)


def test_uniform_fusion_by_hand() -> None:
    values = fuse(LEAVES, np.zeros(SMALL.nodes), SMALL)
    assert values == pytest.approx([1.75, 3.0, 0.5, 3.0, 0.5, *LEAVES, *LEAVES])


@settings(max_examples=30)
@given(schedules, st.integers(0, 999), st.sampled_from([0.0, 0.7, 5.0]))
def test_path_softmax_is_a_softmax_over_all_leaves_below(schedule: Schedule, seed: int, beta: float) -> None:
    rewards, logprobs = random_tree(schedule, seed)
    values = fuse(rewards, logprobs, schedule, beta)
    first_leaf = schedule.first_node[-2]
    for node in range(schedule.nodes):
        total = weight_sum = 0.0
        for leaf in range(first_leaf, schedule.nodes):
            path, at = 0.0, leaf
            while at not in (node, -1):
                path += logprobs[at]
                at = int(schedule.parent[at])
            if at == node:
                weight = math.exp(beta * path)
                weight_sum += weight
                total += weight * rewards[leaf - first_leaf]
        assert values[node] == pytest.approx(total / weight_sum)


def test_depth_advantages_by_hand() -> None:
    values = fuse(LEAVES, np.zeros(SMALL.nodes), SMALL)
    got, _ = depth_advantages(values, SMALL, "depth")
    half = 1 / math.sqrt(2)
    six = (LEAVES - 1.75) / LEAVES.std(ddof=1)
    assert got == pytest.approx([0, half, -half, half, -half, *six, *np.zeros(6)])
    leaf, _ = depth_advantages(values, SMALL, "leaf")
    assert leaf[1:5] == pytest.approx(np.array([1.25, -1.25] * 2) / LEAVES.std(ddof=1))


def test_independent_roots_with_group_are_plain_grpo() -> None:
    """Every edge of a trajectory gets its leaf's advantage within the group."""
    schedule = tree_schedule(3, kernel="dance", eta=0.5, roots=4)
    rewards = np.array([1.0, 2.0, 3.0, 6.0])
    got, _ = depth_advantages(fuse(rewards, np.zeros(schedule.nodes), schedule), schedule, "group")
    grpo = (rewards - 3) / rewards.std(ddof=1)
    assert got == pytest.approx([*np.zeros(4), *grpo, *grpo, *np.zeros(4)])


@settings(max_examples=40)
@given(schedules, st.integers(0, 999), st.sampled_from(["depth", "leaf", "group"]))
def test_advantages_have_zero_mean_per_depth_and_root(schedule: Schedule, seed: int, normaliser: str) -> None:
    rewards, logprobs = random_tree(schedule, seed)
    values = fuse(rewards, logprobs, schedule, beta=0.5)
    got, _ = depth_advantages(values, schedule, normaliser)
    root = np.concatenate([np.repeat(np.arange(schedule.roots), n // schedule.roots) for n in schedule.nodes_per_depth])
    roots = np.zeros_like(root) if normaliser == "group" else root
    for depth, root in itertools.product(schedule.trained_depths, np.unique(roots)):
        assert got[(schedule.depth == depth) & (roots == root)].sum() == pytest.approx(0, abs=1e-9)
    assert not got[~schedule.trained].any()


@settings(max_examples=40)
@given(schedules, st.floats(-1e3, 1e3), st.sampled_from(["depth", "leaf", "group"]), st.sampled_from([0.0, 1.0]))
def test_equal_leaves_give_exactly_zero(schedule: Schedule, reward: float, normaliser: str, beta: float) -> None:
    _, logprobs = random_tree(schedule, 1)
    values = fuse(np.full(schedule.leaves, reward), logprobs, schedule, beta)
    assert not depth_advantages(values, schedule, normaliser)[0].any()


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1.0, 1e7, 1e12])
@pytest.mark.parametrize("normaliser", ["depth", "leaf", "group"])
def test_advantages_do_not_depend_on_the_unit_of_rewards(scale: float, normaliser: str) -> None:
    """A small weight, or a reward in other units, takes nothing away, and equal rewards stay equal."""
    values = fuse(LEAVES, np.zeros(SMALL.nodes), SMALL)
    got, _ = depth_advantages(scale * values, SMALL, normaliser)
    assert got == pytest.approx(depth_advantages(values, SMALL, normaliser)[0])
    rng = np.random.default_rng(0)
    rounded = scale * 0.3 * (1 + 1e-8 * rng.normal(size=SMALL.nodes))
    assert not depth_advantages(rounded, SMALL, normaliser)[0].any()


@settings(max_examples=30)
@given(schedules, st.integers(0, 999))
def test_the_value_of_a_root_is_the_mean_of_its_leaves(schedule: Schedule, seed: int) -> None:
    rewards, logprobs = random_tree(schedule, seed)
    values = fuse(rewards, logprobs, schedule)
    by_root = rewards.reshape(schedule.roots, -1)
    assert values[: schedule.roots] == pytest.approx(by_root.mean(axis=1))
    shuffled = np.random.default_rng(seed).permuted(by_root, axis=1).ravel()
    assert fuse(shuffled, logprobs, schedule)[: schedule.roots] == pytest.approx(values[: schedule.roots])


@settings(max_examples=30)
@given(schedules, st.integers(0, 999), st.sampled_from(["depth", "leaf", "group"]), st.sampled_from([0.0, 0.7]))
def test_relabelling_siblings_changes_nothing(schedule: Schedule, seed: int, normaliser: str, beta: float) -> None:
    """The children of the nodes at one split change places, with all that is below them."""
    rewards, logprobs = random_tree(schedule, seed)
    rng = np.random.default_rng(seed)
    split = int(rng.choice([depth for depth, step in enumerate(schedule.steps) if step.children > 1]))
    order = rng.permutation(schedule.steps[split].children)
    places = [np.arange(n) for n in schedule.nodes_per_depth]
    for depth in range(split + 1, len(places)):
        places[depth] = places[depth].reshape(schedule.nodes_per_depth[split], len(order), -1)[:, order].ravel()
    node = np.concatenate([first + place for first, place in zip(schedule.first_node, places, strict=False)])
    first_leaf = schedule.first_node[-2]
    values = fuse(rewards, logprobs, schedule, beta)
    moved = fuse(rewards[node[first_leaf:] - first_leaf], logprobs[node], schedule, beta)
    assert moved == pytest.approx(values[node])
    advantages, _ = depth_advantages(values, schedule, normaliser)
    assert depth_advantages(moved, schedule, normaliser)[0] == pytest.approx(advantages[node], abs=1e-9)


@given(schedules)
@settings(max_examples=30)
def test_edge_weights_add_up_to_one(schedule: Schedule) -> None:
    for kind in ("edge", "depth"):
        weights = edge_weights(schedule, kind)
        assert weights.sum() == pytest.approx(1)
        assert not weights[~schedule.trained].any()
    by_depth = [edge_weights(schedule, "depth")[schedule.depth == depth].sum() for depth in schedule.trained_depths]
    assert by_depth == pytest.approx([1 / len(by_depth)] * len(by_depth))
    assert len(set(edge_weights(schedule, "edge")[schedule.trained])) == 1
