"""Rows of the learner that learns from leaves alone: leaves, noised anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..proto.settings import RunSettings
from ..proto.tree import Tree
from ..rollout_workers.noise import Stream, gaussian, generator
from ..rollout_workers.policies.base import collate
from .credit import Credit
from .rows import conditioning_of, shared_out


@dataclass(frozen=True)
class LeafRow:
    """A leaf at one noise level."""

    tree: Tree
    leaf: int
    """Number of its node."""
    level: int
    merit: float
    """How good it is among the leaves that it is compared with, in [0, 1]; 0.5 is the mean."""
    weight: float
    """Share of the leaf in its tree's objective."""
    turn: int = 0
    """Which of an update's passes it is for: each has noise of its own."""


@dataclass(frozen=True)
class NoisedLeaves:
    """R leaves, noised."""

    states: torch.Tensor
    """[R, *latent_shape], float32."""
    sigmas: torch.Tensor
    """Noise level of each state in (0, 1), float32 [R]."""
    leaves: torch.Tensor
    """The leaves without noise, [R, *latent_shape], float32."""
    conditioning: Mapping[str, torch.Tensor]
    """Conditioning of each row, with a leading dimension R."""
    merits: torch.Tensor
    """float32 [R]."""
    weights: torch.Tensor
    """float32 [R]."""

    def to(self, device: torch.device) -> NoisedLeaves:
        """The noised leaves on a device."""
        fields = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return NoisedLeaves(conditioning={name: c.to(device) for name, c in self.conditioning.items()}, **fields)


def leaf_rows(
    trees: Sequence[Tree], credits: Sequence[Credit], clip: float, levels: int, *, skip: bool = True, turn: int = 0
) -> list[LeafRow]:
    """The rows of all leaves of `trees` that have a weight, level by level, in tree order, for a pass over them.

    `credits` are those of `leaf_credit`, whose advantages are clipped at `clip`. With `skip`, leaves whose advantage is
    exactly zero are left out: they pull the policy to itself.
    """
    rows = []
    for tree, credit in zip(trees, credits, strict=True):
        kept, weight = credit.weights > 0, 1 / (tree.schedule.leaves * levels)
        for leaf in np.flatnonzero(kept & (credit.advantages != 0) if skip else kept):
            merit = (1 + float(credit.advantages[leaf]) / clip) / 2
            rows += [LeafRow(tree, int(leaf), level, merit, weight, turn) for level in range(levels)]
    return rows


def noised_batches(
    rows: Sequence[LeafRow], settings: RunSettings, iteration: int, *, rank: int = 0, ranks: int = 1
) -> Iterator[NoisedLeaves]:
    """The share of `rank` in the rows, in as many micro-batches as on every other rank; missing rows have weight 0."""
    for own in shared_out(rows, settings.learner.rows_per_micro_batch, rank, ranks):
        filled = own or [LeafRow(**(vars(rows[0]) | {"weight": 0.0}))]
        yield noised(filled, settings.seed, iteration, settings.learner.nft.noise_levels)


def noised(rows: Sequence[LeafRow], seed: int, iteration: int, levels: int) -> NoisedLeaves:
    """Rows as one batch. Noise and level of a row depend on seed, iteration, tree, leaf, pass and number of the level.

    Level i of n is drawn evenly from the inner 98 % of (i / n, (i + 1) / n).
    """
    leaves = torch.stack([row.tree.state(row.leaf).float() for row in rows])
    noise, sigmas = [], []
    for row, leaf in zip(rows, leaves, strict=True):
        number = (row.turn * row.tree.schedule.nodes + row.leaf) * levels + row.level
        place = seed, iteration, row.tree.number, number
        sigmas.append((row.level + generator(*place, Stream.LEVEL).uniform(0.01, 0.99)) / levels)
        noise.append(gaussian(*place, Stream.RENOISED, leaf.shape))
    levels_of = torch.tensor(sigmas, dtype=torch.float32)
    wide = levels_of.reshape(-1, *[1] * (leaves.ndim - 1))
    return NoisedLeaves(
        states=torch.lerp(leaves, torch.stack(noise).to(leaves.device), wide.to(leaves.device)),
        sigmas=levels_of,
        leaves=leaves,
        conditioning=collate([conditioning_of(row.tree) for row in rows]),
        merits=torch.tensor([row.merit for row in rows]),
        weights=torch.tensor([row.weight for row in rows]),
    )
