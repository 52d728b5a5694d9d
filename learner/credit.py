"""The advantage and weight of every edge of a scored tree: fusion, advantages and pruning together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..proto.errors import InputError
from ..proto.settings import AdvantageSettings, PruningSettings, RunSettings
from ..proto.tree import FloatArray, Tree
from .advantages import EPSILON, FLAT_SPREAD, depth_advantages, edge_weights, leaf_advantages
from .fusion import fuse
from .pruning import kept_edges


@dataclass(frozen=True)
class Credit:
    """The advantages and weights of one tree's edges."""

    advantages: FloatArray
    """Advantage of the edge into every node, float64 [nodes]."""
    weights: FloatArray
    """Share of every node's edge in the tree's objective, float64 [nodes]; 0 where it isn't trained or was pruned."""
    values: FloatArray = field(default_factory=lambda: np.empty(0))
    """Value of every node, from which both follow, float64 [nodes]; empty for credit that was made up otherwise."""
    pulls: Mapping[str, float] = field(default_factory=dict)
    """Trained reward -> how much of the tree's advantages is due to it (`proto/update_stats.py` has the formula)."""


def credit_of(tree: Tree, settings: RunSettings, iteration: int, noise: Sequence[float] = ()) -> Credit:
    """Credit of a tree's edges, given the relative `noise` of every step; of its leaves, if those alone are learned
    from. A tree that is left out has none."""
    if tree.left_out:
        return Credit(np.zeros(tree.schedule.nodes), np.zeros(tree.schedule.nodes))
    rewards = {name: reward.weight for name, reward in settings.training_rewards.items()}
    if settings.learner.learns_from_leaves:
        return leaf_credit(tree, rewards, settings.advantage)
    return tree_credit(tree, rewards, settings.advantage, settings.pruning, iteration, noise)


def tree_credit(
    tree: Tree,
    rewards: Mapping[str, float],
    settings: AdvantageSettings,
    pruning: PruningSettings,
    iteration: int,
    noise: Sequence[float],
) -> Credit:
    """Credit of a scored tree of an iteration (the first is 1).

    `rewards` are the factors of the rewards in their sum, `noise` the relative noise of every step. Raises ValueError
    for a tree with scores missing, and InputError if pruning keeps no edge.
    """
    schedule = tree.schedule
    values, advantages, sizes = _advantages(tree, rewards, settings, depth_advantages)
    kept = kept_edges(values, schedule, pruning, iteration)
    if not kept.any():
        raise InputError(f"pruning keeps none of the {schedule.trained_edges} trained edges of iteration {iteration}")
    weights = edge_weights(schedule, settings.edge_weight, kept, noise if settings.noise_weight else None)
    return Credit(advantages.clip(-settings.clip, settings.clip), weights, values, _pulls(sizes, weights))


def leaf_credit(tree: Tree, rewards: Mapping[str, float], settings: AdvantageSettings) -> Credit:
    """Credit of a scored tree's leaves, all of which weigh the same: advantages are clipped like those of edges, and
    every other node has none.

    Raises ValueError for a tree with scores missing.
    """
    values, of_leaves, sizes = _advantages(tree, rewards, settings, leaf_advantages)
    schedule, advantages, weights = tree.schedule, np.zeros(len(values)), np.zeros(len(values))
    advantages[schedule.first_node[-2] :] = of_leaves.clip(-settings.clip, settings.clip)
    weights[schedule.first_node[-2] :] = 1 / schedule.leaves
    return Credit(advantages, weights, values, _pulls(sizes, weights[schedule.first_node[-2] :]))


def _advantages(
    tree: Tree,
    rewards: Mapping[str, float],
    settings: AdvantageSettings,
    normalised: Callable[..., tuple[FloatArray, FloatArray]],
) -> tuple[FloatArray, FloatArray, dict[str, FloatArray]]:
    """The value of every node; the advantages that `normalised` makes of values, of all rewards together; and the size
    of each trained reward's part in them."""
    if not tree.scored(rewards):
        raise ValueError(f"tree {tree.number} ('{tree.prompt}') isn't wholly sampled and scored")
    schedule, beta = tree.schedule, 0.0 if settings.fusion == "uniform" else settings.fusion_beta

    def value(leaves: FloatArray) -> FloatArray:
        return fuse(leaves, tree.logprobs, schedule, beta, per_edge=settings.fusion == "edge_softmax")

    parts = [weight * tree.rewards[name] for name, weight in rewards.items()]
    values = value(np.sum(parts, axis=0))
    if settings.combine == "rewards":
        size = float(np.abs(parts).sum(axis=0).max())
        advantages, rounding = normalised(values, schedule, settings.normaliser, size)
    else:
        each = [normalised(value(tree.rewards[name]), schedule, settings.normaliser) for name in rewards]
        pairs = list(zip(rewards.values(), each, strict=True))
        advantages = np.sum([weight * own for weight, (own, _) in pairs], axis=0)
        rounding = np.sum([abs(weight) * (rounded + EPSILON * np.abs(own)) for weight, (own, rounded) in pairs], axis=0)
    advantages[np.abs(advantages) <= rounding] = 0.0  # exactly, so that no row is trained on rounding
    if settings.combine == "rewards":
        spreads = _spreads(parts, 1 if settings.normaliser == "group" else schedule.roots)
        sizes = [spread * np.full_like(advantages, advantages.any()) for spread in spreads]
    else:
        sizes = [np.abs(weight * own) for weight, (own, _) in pairs]
    return values, advantages, {name: size for name, size in zip(rewards, sizes, strict=True) if rewards[name]}


def _spreads(parts: Sequence[FloatArray], groups: int) -> FloatArray:
    """Standard deviation of each weighted reward within groups of leaves, relative to the sum of all, float64 [k]."""
    spreads = np.array([part.reshape(groups, -1).std(axis=1).mean() for part in parts])
    spreads[spreads <= FLAT_SPREAD * np.abs(parts).max(axis=1)] = 0.0
    return spreads / (spreads.sum() or 1.0)


def _pulls(sizes: Mapping[str, FloatArray], weights: FloatArray) -> dict[str, float]:
    return {name: float(weights @ size) for name, size in sizes.items()}
