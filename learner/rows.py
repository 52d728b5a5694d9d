"""From scored trees to micro-batches: trained edges grouped by parent state, one network row per parent.

Rows are shared out over the learner's ranks in tree order. Every rank makes the same number of backward passes,
whatever its share: a rank that made fewer would leave the others waiting in a collective for ever.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from ..proto.schedule import IntArray
from ..proto.tree import FloatArray, Tree
from ..rollout_workers.policies.base import collate
from .credit import Credit

AnyRow = TypeVar("AnyRow")
EdgeName = tuple[int, int]
"""Number of an edge's tree within the iteration, and the node that it leads to."""


@dataclass(frozen=True)
class MicroBatch:
    """R parent states, each through the network once, and the E edges that leave them."""

    states: torch.Tensor
    """[R, *latent_shape]."""
    steps: torch.Tensor
    """Denoising step taken from each state, int64 [R]."""
    conditioning: Mapping[str, torch.Tensor]
    """Conditioning of each row, with a leading dimension R."""
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
    edges: Sequence[EdgeName] = ()
    """The names of the E edges; none if they are padding."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The micro-batch on a device."""
        moved: dict[str, Any] = {n: own.to(device) for n, own in vars(self).items() if isinstance(own, torch.Tensor)}
        conditioning = {name: value.to(device) for name, value in self.conditioning.items()}
        return replace(self, conditioning=conditioning, **moved)


@dataclass(frozen=True)
class Row:
    """A parent state and those of its children that are trained on."""

    tree: int
    """Position of its tree among those that are worked on."""
    parent: int
    children: IntArray


def pick_rows(trees: Sequence[Tree], credits: Sequence[Credit], *, skip_zero_advantage: bool = True) -> list[Row]:
    """The rows of all edges of `trees` that have a weight, in tree order; asks for no state.

    With `skip_zero_advantage`, edges whose advantage is exactly zero are left out: they add nothing to the gradient.
    """
    picked: list[Row] = []
    for i, (tree, credit) in enumerate(zip(trees, credits, strict=True)):
        kept = credit.weights > 0
        children = np.flatnonzero(kept & (credit.advantages != 0) if skip_zero_advantage else kept)
        parents, begins = np.unique(tree.schedule.parent[children], return_index=True)
        picked += [Row(i, int(p), own) for p, own in zip(parents, np.split(children, begins)[1:], strict=True)]
    return picked


def micro_batches(
    picked: Sequence[Row],
    trees: Sequence[Tree],
    credits: Sequence[Credit],
    *,
    rows: int,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[MicroBatch]:
    """The share of `rank` in the `picked` rows, in micro-batches of at most `rows` parent states.

    As many micro-batches as on every other rank: where the share has no row left, one row of weight zero.
    """
    for own in shared_out(picked, rows, rank, ranks):
        if own:
            yield assemble(own, trees, credits)
        else:
            padding = assemble(picked[:1], trees, credits)
            yield replace(padding, weights=torch.zeros_like(padding.weights), edges=())


def shared_out(rows: Sequence[AnyRow], size: int, rank: int, ranks: int) -> list[Sequence[AnyRow]]:
    """The share of `rank` in micro-batches of at most `size` rows: as many as every other rank has, so that some may be
    empty. Those stand for the first of all rows, with weight zero."""
    share = rows[rank * len(rows) // ranks : (rank + 1) * len(rows) // ranks]
    return [share[begin : begin + size] for begin in range(0, math.ceil(len(rows) / ranks), size)]


def worked_on(rows: Sequence[AnyRow], size: int, rank: int, ranks: int) -> Iterator[AnyRow]:
    """The rows whose states `rank` needs: its share, and what it is padded with."""
    return chain.from_iterable(own or rows[:1] for own in shared_out(rows, size, rank, ranks))


def assemble(
    picked: Sequence[Row],
    trees: Sequence[Tree],
    credits: Sequence[Credit],
) -> MicroBatch:
    """Rows as one batch."""
    edges = [(row.tree, int(child)) for row in picked for child in row.children]

    def per_edge(values: Sequence[FloatArray]) -> torch.Tensor:
        return torch.tensor([values[i][child] for i, child in edges], dtype=torch.float32)

    return MicroBatch(
        states=torch.stack([trees[row.tree].state(row.parent) for row in picked]),
        steps=torch.tensor([int(trees[row.tree].schedule.depth[row.parent]) for row in picked]),
        conditioning=collate([conditioning_of(trees[row.tree]) for row in picked]),
        parents=torch.repeat_interleave(torch.tensor([len(row.children) for row in picked])),
        children=torch.stack([trees[i].state(child) for i, child in edges]),
        logprobs=per_edge([tree.logprobs for tree in trees]),
        advantages=per_edge([credit.advantages for credit in credits]),
        weights=per_edge([credit.weights for credit in credits]),
        edges=[(trees[i].number, child) for i, child in edges],
    )


def conditioning_of(tree: Tree) -> Mapping[str, torch.Tensor]:
    """The conditioning of a tree. Raises ValueError if it came without."""
    if tree.conditioning is None:
        raise ValueError(f"tree {tree.number} came without its conditioning")
    return tree.conditioning
