"""DiffusionNFT (arXiv 2509.16117): learning from leaves alone, by flow matching towards the good and away from the bad.

A leaf x0 is noised anew to x = (1 - s) * x0 + s * eps, whose velocity is v = eps - x0. With the velocity `old` of the
policy that sampled the leaf, and `new` of the policy that is trained, the objective pulls old + beta * (new - old)
towards v in proportion to the leaf's merit, and old - beta * (new - old) in proportion to 1 - merit. It needs neither
noisy steps nor log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from ..proto.settings import NftSettings, RunSettings
from ..proto.tree import Conditioning, Tree
from ..rollout_workers.noise import Stream, gaussian, generator
from ..rollout_workers.policies.base import Policy, collate, trainable
from .credit import Credit
from .ema import WeightAverage
from .rows import conditioning_of, shared_out

SMALLEST_ERROR = 1e-5
"""Minimum mean absolute error by which an error is divided."""


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


def nft_loss(new: torch.Tensor, old: torch.Tensor, batch: NoisedLeaves, strength: float) -> torch.Tensor:
    """The objective of a batch, scalar: the weighted sum of its rows (DiffusionNFT, eq. 5, over beta).

    `new` and `old` are the velocities of both policies, float32 [R, *latent_shape]; only `new` carries a gradient. The
    error of a velocity is that of the leaf that it predicts, squared, over its mean size: so all noise levels weigh
    alike.
    """
    sigmas = batch.sigmas.reshape(-1, *[1] * (new.ndim - 1))
    inner = tuple(range(1, new.ndim))

    def error(velocity: torch.Tensor) -> torch.Tensor:
        difference = batch.states - sigmas * velocity - batch.leaves
        size = difference.detach().abs().mean(inner, keepdim=True).clamp(min=SMALLEST_ERROR)
        return (difference**2 / size).mean(inner)

    change = strength * (new - old)
    pulled, pushed = error(old + change), error(old - change)
    return (batch.weights * (batch.merits * pulled + (1 - batch.merits) * pushed)).sum() / strength


class OldPolicy:
    """The policy that rollouts sample with: a running average of the trained weights, renewed once per iteration."""

    def __init__(self, policy: Policy, settings: NftSettings, weights: Mapping[str, torch.Tensor]) -> None:
        self._policy = policy
        self.average = WeightAverage(settings.old_decay, weights.items())
        self.weights = {name: parameter.detach().clone() for name, parameter in trainable(policy.network).items()}
        """What the average is at the network's precision, on its device."""

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Continue an average that was kept before, or begin one with these weights."""
        self.average.load(weights)
        self.refresh()

    def sampler(self) -> Policy:
        """A policy for rollouts in this process: the trained one, if the average is its weights, else one with a
        network of its own, which gets `weights` at every publication."""
        if not self.average.decay:
            return self._policy
        own = copy(self._policy)
        own.network = deepcopy(self._policy.network).requires_grad_(False)
        for name in self.weights:
            own.network.get_parameter(name).requires_grad_(True)  # they are those that are loaded
        return own

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The trained network with the old weights, meanwhile."""
        trained = {name: parameter.data for name, parameter in trainable(self._policy.network).items()}
        for name, parameter in trainable(self._policy.network).items():
            parameter.data = self.weights[name]
        try:
            yield
        finally:
            for name, parameter in trainable(self._policy.network).items():
                parameter.data = trained[name]

    def renew(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the trained weights into the average."""
        self.average.update(weights.items())
        self.refresh()

    def refresh(self) -> None:
        """Have `weights` follow the average."""
        for name, value in self.average.weights.items():
            self.weights[name].copy_(value)

    @torch.no_grad()
    def velocity(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The old policy's velocity; arguments and result as of `Policy.velocity`."""
        network = self._policy.network

        def old(**inputs: object) -> tuple[torch.Tensor]:
            return torch.func.functional_call(network, self.weights, (), inputs)  # type: ignore[no-any-return]

        velocity: Callable[..., torch.Tensor] = self._policy.velocity
        return velocity(latents, sigma, conditioning, old)
