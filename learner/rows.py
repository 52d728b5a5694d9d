"""From scored trees to micro-batches: trained edges grouped by parent state, one network row per parent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..proto.schedule import IntArray
from ..proto.settings import AdvantageSettings
from ..proto.tree import FloatArray, Tree
from ..rollout_workers.policies.base import collate
from .advantages import depth_advantages, edge_weights
from .fusion import fuse


@dataclass(frozen=True)
class MicroBatch:
    """R parent states, each through the network once, and the E edges that leave them."""

    states: torch.Tensor
    """[R, *latent_shape]."""
    steps: torch.Tensor
    """Denoising step taken from each state, int64 [R]."""
    conditioning: Mapping[str, torch.Tensor]
    """With a leading dimension R."""
    parents: torch.Tensor
    """Row of each edge's parent, int64 [E]."""
    children: torch.Tensor
    """[E, *latent_shape]."""
    logprobs: torch.Tensor
    """Log-probability of each edge when it was sampled, float32 [E]."""
    advantages: torch.Tensor
    """float32 [E]."""
    weights: torch.Tensor
    """Share of each edge in its tree's objective, float32 [E]."""

    def to(self, device: torch.device) -> "MicroBatch":
        fields = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        conditioning = {name: value.to(device) for name, value in self.conditioning.items()}
        return MicroBatch(conditioning=conditioning, **{name: value.to(device) for name, value in fields.items()})


def tree_advantages(tree: Tree, weights: Mapping[str, float], settings: AdvantageSettings) -> FloatArray:
    """Advantage of the edge into every node of a scored tree, float64 [nodes].

    `weights` are the rewards' factors in their sum. Raises ValueError for a tree with scores missing.
    """
    if not tree.scored(weights):
        raise ValueError(f"tree {tree.number} ('{tree.prompt}') isn't wholly sampled and scored")
    total = sum((weight * tree.rewards[name] for name, weight in weights.items()), np.zeros(tree.schedule.leaves))
    beta = 0.0 if settings.fusion == "uniform" else settings.fusion_beta
    values = fuse(total, tree.logprobs, tree.schedule, beta)
    return depth_advantages(values, tree.schedule, settings.normaliser, settings.clip)


def micro_batches(
    trees: Sequence[Tree],
    advantages: Sequence[FloatArray],
    settings: AdvantageSettings,
    *,
    rows: int,
    skip_zero_advantage: bool = True,
) -> Iterator[MicroBatch]:
    """The trained edges of `trees`, in tree order, in micro-batches of at most `rows` parent states.

    With `skip_zero_advantage`, edges whose advantage is exactly zero are left out: they add nothing to the gradient.
    """
    picked: list[tuple[int, int, IntArray]] = []  # (tree, parent, its kept children)
    for i, (tree, advantage) in enumerate(zip(trees, advantages, strict=True)):
        kept = tree.schedule.trained & (advantage != 0) if skip_zero_advantage else tree.schedule.trained
        children = np.flatnonzero(kept)
        parents, begins = np.unique(tree.schedule.parent[children], return_index=True)
        picked += [(i, int(p), own) for p, own in zip(parents, np.split(children, begins)[1:], strict=True)]
    weights = [edge_weights(tree.schedule, settings.edge_weight) for tree in trees]
    for begin in range(0, len(picked), rows):
        yield _assemble(picked[begin : begin + rows], trees, advantages, weights)


def _assemble(
    picked: Sequence[tuple[int, int, IntArray]],
    trees: Sequence[Tree],
    advantages: Sequence[FloatArray],
    weights: Sequence[FloatArray],
) -> MicroBatch:
    edges = [(i, int(child)) for i, _, children in picked for child in children]

    def per_edge(values: Sequence[FloatArray]) -> torch.Tensor:
        return torch.tensor([values[i][child] for i, child in edges], dtype=torch.float32)

    return MicroBatch(
        states=torch.stack([_latents(trees[i], parent) for i, parent, _ in picked]),
        steps=torch.tensor([int(trees[i].schedule.depth[parent]) for i, parent, _ in picked]),
        conditioning=collate([_conditioning(trees[i]) for i, _, _ in picked]),
        parents=torch.repeat_interleave(torch.tensor([len(children) for _, _, children in picked])),
        children=torch.stack([_latents(trees[i], child) for i, child in edges]),
        logprobs=per_edge([tree.logprobs for tree in trees]),
        advantages=per_edge(advantages),
        weights=per_edge(weights),
    )


def _latents(tree: Tree, node: int) -> torch.Tensor:
    latents = tree.latents[node]
    if latents is None:
        raise ValueError(f"node {node} of tree {tree.number} hasn't arrived")
    return latents


def _conditioning(tree: Tree) -> Mapping[str, torch.Tensor]:
    if tree.conditioning is None:
        raise ValueError(f"tree {tree.number} came without its conditioning")
    return tree.conditioning
