"""Pruning, weights and several rewards against hand-computed trees."""

import math

import numpy as np
import pytest
from branchgrpo.learner.advantages import depth_advantages, edge_weights
from branchgrpo.learner.credit import tree_credit
from branchgrpo.learner.fusion import fuse
from branchgrpo.learner.pruning import kept_edges
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.methods import branch_grpo, branch_grpo_mix, dance_grpo, tempflow_grpo
from branchgrpo.proto.schedule import Schedule, tree_schedule
from branchgrpo.proto.settings import AdvantageSettings, DepthPruningSettings, PruningSettings, WidthPruningSettings
from branchgrpo.proto.tree import Tree
from branchgrpo.proto.update_stats import UpdateStats, reward_shares
from branchgrpo.rollout_workers.kernels import relative_noise
from hypothesis import given, settings
from hypothesis import strategies as st

# Nodes 0 | 1 2 | 3..8 (the split into three) | 9..14 | 15..20 (untrained)
SMALL = tree_schedule(4, kernel="dance", eta=0.5, splits={0: 2, 1: 3})
LEAVES = np.array([1.0, 2.0, 6.0, 0.0, 0.5, 0.4])

schedules = st.builds(
    lambda roots, splits: tree_schedule(6, kernel="dance", eta=0.5, roots=roots, splits=splits),
    st.integers(1, 3),
    st.dictionaries(st.integers(0, 4), st.integers(2, 3), max_size=3),
)


def kept(schedule: Schedule, leaves: np.ndarray, iteration: int = 1, **pruning: object) -> list[int]:
    values = fuse(leaves, np.zeros(schedule.nodes), schedule)
    return np.flatnonzero(kept_edges(values, schedule, PruningSettings(**pruning), iteration)).tolist()


def test_width_pruning_keeps_the_chains_it_names() -> None:
    assert kept(SMALL, LEAVES) == list(range(1, 15))
    best_child = WidthPruningSettings(mode="parent_top1")
    assert kept(SMALL, LEAVES, width=best_child) == [*range(1, 9), 11, 13]
    extreme = WidthPruningSettings(mode="extreme", keep=1)
    assert kept(SMALL, LEAVES, width=extreme) == [*range(1, 9), 11, 12]
    two = WidthPruningSettings(mode="extreme", keep=2)
    assert kept(SMALL, LEAVES, width=two) == [*range(1, 9), 10, 11, 12, 14]
    everything = WidthPruningSettings(mode="extreme", keep=9)
    assert kept(SMALL, LEAVES, width=everything) == list(range(1, 15))


def test_the_last_split_s_own_edges_can_be_pruned_too() -> None:
    best_child = WidthPruningSettings(mode="parent_top1", keep_last_split=False)
    assert kept(SMALL, LEAVES, width=best_child) == [1, 2, 5, 7, 11, 13]
    extreme = WidthPruningSettings(mode="extreme", keep=1, keep_last_split=False)
    assert kept(SMALL, LEAVES, width=extreme) == [1, 2, 5, 6, 11, 12]


@pytest.mark.parametrize(("keep_last_split", "edges"), [(True, 138), (False, 130)])
def test_width_pruning_leaves_the_paper_s_count(keep_last_split: bool, edges: int) -> None:
    """8.625 edges for each of 16 leaves, with those of the last step, which we don't train."""
    schedule, leaves = branch_grpo(), np.random.default_rng(0).random(16)
    for mode, keep in (("parent_top1", 4), ("extreme", 4)):
        width = WidthPruningSettings(mode=mode, keep=keep, keep_last_split=keep_last_split)
        nodes = kept(schedule, leaves, width=width)
        chains = sum(int(schedule.depth[node]) == schedule.trained_depths[-1] for node in nodes)
        assert (chains, len(nodes) + chains) == (8, edges)
    assert 138 / 16 == 8.625


def test_in_a_forest_without_splits_whole_samples_are_kept() -> None:
    forest = dance_grpo(steps=3, group=4)  # nodes 0..3 | 4..7 | 8..11 | 12..15
    leaves = np.array([3.0, 1.0, 0.0, 2.0])
    assert kept(forest, leaves, width=WidthPruningSettings(mode="extreme", keep=1)) == [4, 6, 8, 10]
    assert kept(forest, leaves, width=WidthPruningSettings(mode="parent_top1")) == [4, 8]


def test_depth_pruning_drops_a_window_of_depths() -> None:
    fixed = DepthPruningSettings(mode="fixed", window=2, start=1)
    assert kept(SMALL, LEAVES, depth=fixed) == list(range(9, 15))
    last = DepthPruningSettings(mode="fixed", window=1)
    assert kept(SMALL, LEAVES, depth=last) == list(range(1, 9))
    both = kept(SMALL, LEAVES, depth=last, width=WidthPruningSettings(mode="parent_top1"))
    assert both == list(range(1, 9))


@pytest.mark.parametrize(
    ("direction", "starts"),
    # The last trained depth is 19, so the window of four begins at 16; it moves by one in 30 iterations up to 9.
    [("shallower", [16, 15, 14, 13, 12, 11, 10, 9, 9, 9]), ("deeper", [9, 10, 11, 12, 13, 14, 15, 16, 16, 16])],
)
def test_a_sliding_window_moves_with_iterations(direction: str, starts: list[int]) -> None:
    pruning = DepthPruningSettings(mode="sliding", direction=direction)
    schedule = branch_grpo()
    for i, start in enumerate(starts):
        for iteration in (30 * i + 1, 30 * i + 30):
            assert pruning.first(schedule, iteration) == start
    late = pruning.model_copy(update={"first_iteration": 11})
    assert late.first(schedule, 11) == starts[0]
    assert late.first(schedule, 41) == starts[1]


def test_pruning_keeps_to_its_iterations() -> None:
    width = WidthPruningSettings(mode="parent_top1", first_iteration=3, last_iteration=4)
    counts = [len(kept(SMALL, LEAVES, iteration, width=width)) for iteration in range(1, 7)]
    assert counts == [14, 14, 10, 10, 14, 14]


@settings(max_examples=40)
@given(schedules, st.integers(0, 999), st.sampled_from(["parent_top1", "extreme"]), st.booleans())
def test_every_kept_edge_counts_the_same_whatever_its_advantage(
    schedule: Schedule, seed: int, mode: str, equal: bool
) -> None:
    rng = np.random.default_rng(seed)
    tree = Tree(0, "p", schedule, logprobs=rng.normal(size=schedule.nodes))
    tree.logprobs = rng.normal(size=schedule.nodes)
    tree.rewards = {"r": np.full(schedule.leaves, 0.3) if equal else rng.normal(size=schedule.leaves)}
    pruning = PruningSettings(
        width=WidthPruningSettings(mode=mode, keep=1), depth=DepthPruningSettings(mode="fixed", window=1)
    )
    stds = [0.5] * len(schedule.steps)
    whole, pruned = (
        tree_credit(tree, {"r": 1.0}, AdvantageSettings(normaliser="group"), given, 1, stds)
        for given in (PruningSettings(), pruning)
    )
    assert np.array_equal(whole.advantages, pruned.advantages)
    assert pruned.weights.sum() == pytest.approx(1)
    assert set(np.flatnonzero(pruned.weights)) < set(np.flatnonzero(whole.weights))
    assert len(set(pruned.weights[pruned.weights > 0])) == 1  # every kept edge counts the same, whatever its advantage


def test_edge_softmax_weighs_a_node_s_own_children() -> None:
    logprobs = np.zeros(SMALL.nodes)
    logprobs[1], logprobs[3] = np.log(3), np.log(2)
    values = fuse(LEAVES, logprobs, SMALL, beta=1.0, per_edge=True)
    left = (2 * LEAVES[0] + LEAVES[1] + LEAVES[2]) / 4
    right = LEAVES[3:].mean()
    assert values[:3] == pytest.approx([(3 * left + right) / 4, left, right])
    # The softmax over whole paths gives the left side, which has more mass below, another weight.
    assert fuse(LEAVES, logprobs, SMALL, beta=1.0)[0] == pytest.approx((3 * 4 * left + 3 * right) / (3 * 4 + 3))


def test_weights_by_depth_and_noise_by_hand() -> None:
    keep = SMALL.trained & (np.arange(SMALL.nodes) != 14)
    noise = [4.0, 2.0, 1.0, 0.0]
    by_depth = edge_weights(SMALL, "depth", keep)
    assert by_depth[[1, 3, 9, 14]] == pytest.approx([1 / 6, 1 / 18, 1 / 15, 0])
    by_noise = edge_weights(SMALL, "edge", keep, noise)
    assert by_noise[[1, 3, 9, 14]] == pytest.approx([4 / 13, 2 / 13, 1 / 13, 0])
    both = edge_weights(SMALL, "depth", keep, noise)
    assert both[[1, 3, 9]] == pytest.approx([4 / 6, 2 / 18, 1 / 15])


def test_a_step_trained_alone_weighs_what_its_noise_is() -> None:
    """TempFlow-GRPO trains one step in an iteration: over a sweep its trees weigh 1 on average."""
    sigmas = [1 - i / 10 for i in range(11)]
    totals = []
    for iteration in range(1, 10):
        schedule = tempflow_grpo(iteration=iteration, ode_stride=3)
        noise = relative_noise(schedule, sigmas)
        totals.append(edge_weights(schedule, "edge", None, noise).sum())
    levels = [0.7 * math.sqrt(s / (1 - (sigmas[1] if s == 1 else s))) for s in sigmas[:9]]
    assert totals == pytest.approx([level / np.mean(levels) for level in levels])
    assert np.mean(totals) == pytest.approx(1)


def test_pruning_that_keeps_no_edge_is_refused() -> None:
    tree = Tree(0, "p", SMALL)
    tree.logprobs, tree.rewards = np.zeros(SMALL.nodes), {"r": LEAVES}
    pruning = PruningSettings(depth=DepthPruningSettings(mode="fixed", window=9, start=1))
    with pytest.raises(InputError, match="keeps none of the 14 trained edges of iteration 3"):
        tree_credit(tree, {"r": 1.0}, AdvantageSettings(), pruning, 3, [1.0] * 4)


def test_depths_are_those_of_the_grid_also_with_strides() -> None:
    schedule = branch_grpo_mix(ode_stride=5)  # step 9 leads to node depth 8, and to depth 10 of the grid
    values = np.zeros(schedule.nodes)
    pruning = PruningSettings(depth=DepthPruningSettings(mode="fixed", window=1, start=10))
    dropped = schedule.trained & ~kept_edges(values, schedule, pruning, 1)
    assert set(schedule.levels[schedule.depth[dropped]]) == {10}
    assert dropped.sum() == 16


def test_several_rewards_are_added_before_or_after_normalising() -> None:
    """One reward a thousand times the other drowns it, unless each is normalised by itself."""
    tree = Tree(0, "p", SMALL, logprobs=np.zeros(SMALL.nodes))
    tree.logprobs = np.zeros(SMALL.nodes)
    loud = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 0.0]) * 1000
    tree.rewards = {"quiet": LEAVES, "loud": loud}
    weights, stds = {"quiet": 1.0, "loud": 0.5}, [0.5] * 4

    def advantages(combine: str) -> np.ndarray:
        return tree_credit(tree, weights, AdvantageSettings(combine=combine), PruningSettings(), 1, stds).advantages

    def alone(rewards: np.ndarray) -> np.ndarray:
        return depth_advantages(fuse(rewards, np.zeros(SMALL.nodes), SMALL), SMALL, "depth")[0]

    assert advantages("rewards") == pytest.approx(alone(LEAVES + 0.5 * loud))
    assert advantages("advantages") == pytest.approx(alone(LEAVES) + 0.5 * alone(loud))


@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_a_reward_pulls_by_its_spread_or_by_its_weight_alone(combine: str) -> None:
    """The second reward is the first one in other units, turned around: its advantages differ in sign alone."""
    tree = Tree(0, "p", SMALL)
    tree.logprobs = np.zeros(SMALL.nodes)
    tree.rewards = {"a": LEAVES, "b": 7 - 100 * LEAVES, "same": np.full(6, 0.1), "watched": LEAVES}
    weights = {"a": 3.0, "b": 0.5, "same": 9.0, "watched": 0.0}
    credit = tree_credit(tree, weights, AdvantageSettings(combine=combine), PruningSettings(), 1, [1.0] * 4)
    size = {"rewards": {"a": 3 / 53, "b": 50 / 53, "same": 0}, "advantages": {"a": 3 / 3.5, "b": 0.5 / 3.5, "same": 0}}
    assert reward_shares([UpdateStats(pulls=dict(credit.pulls))]) == pytest.approx(size[combine])


def test_shares_of_several_trees_are_those_of_their_sum() -> None:
    first, second = UpdateStats(), UpdateStats()
    first.note_pulls([{"a": 1.0, "b": 2.0}, {"a": 0.0, "b": 0.0}])
    second.note_pulls([{"a": 3.0, "b": 2.0}, {}])
    assert reward_shares([first, second]) == {"a": 0.5, "b": 0.5}
    assert reward_shares([UpdateStats(pulls={"a": 0.0})]) == {}


def test_advantages_are_clipped_at_the_end() -> None:
    tree = Tree(0, "p", SMALL, logprobs=np.zeros(SMALL.nodes))
    tree.logprobs = np.zeros(SMALL.nodes)
    tree.rewards = {"a": LEAVES, "b": -LEAVES}
    given = AdvantageSettings(combine="advantages", clip=0.5)
    credit = tree_credit(tree, {"a": 3.0, "b": 1.0}, given, PruningSettings(), 1, [0.5] * 4)
    expected = 2 * depth_advantages(fuse(LEAVES, np.zeros(SMALL.nodes), SMALL), SMALL, "depth")[0]
    assert np.abs(expected).max() > 0.5
    assert credit.advantages == pytest.approx(expected.clip(-0.5, 0.5))


@pytest.mark.parametrize("fusion", ["uniform", "path_softmax", "edge_softmax"])
@pytest.mark.parametrize("normaliser", ["depth", "leaf", "group"])
@settings(max_examples=20)
@given(schedules, st.integers(0, 999), st.floats(0.1, 10), st.floats(-3, 3))
def test_advantages_that_cancel_are_exactly_zero(
    fusion: str, normaliser: str, schedule: Schedule, seed: int, factor: float, offset: float
) -> None:
    """Two rewards that say the opposite, in other units: nothing is left to train on, however they are combined."""
    rng = np.random.default_rng(seed)
    tree = Tree(0, "p", schedule)
    tree.logprobs = rng.normal(size=schedule.nodes)
    scores = rng.normal(size=schedule.leaves)
    tree.rewards = {"a": scores, "b": factor * scores + offset}
    for combine, weight in (("advantages", -1.0), ("rewards", -1 / factor)):
        given = AdvantageSettings(combine=combine, fusion=fusion, normaliser=normaliser)
        credit = tree_credit(tree, {"a": 1.0, "b": weight}, given, PruningSettings(), 1, [0.5] * len(schedule.steps))
        assert not credit.advantages.any()


def test_a_leaf_at_the_mean_but_for_rounding_has_no_advantage() -> None:
    forest = dance_grpo(steps=3, group=3)
    tree = Tree(0, "p", forest)
    tree.logprobs, tree.rewards = np.zeros(forest.nodes), {"r": np.array([0.1, 0.2, 0.3])}
    assert np.mean(tree.rewards["r"]) != 0.2
    credit = tree_credit(
        tree, {"r": 1.0}, AdvantageSettings(normaliser="group"), PruningSettings(), 1, [0.5] * len(forest.steps)
    )
    assert credit.advantages[3:6] == pytest.approx([-1, 0, 1])
    assert credit.advantages[4] == 0
