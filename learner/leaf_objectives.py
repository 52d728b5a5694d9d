"""Objectives of leaves alone, for `learner.objective` nft and awm.

A leaf x0 is noised anew to x = (1 - s) * x0 + s * eps, whose velocity is eps - x0. Both objectives hold that velocity
against those of two policies: `new`, which is trained, and `old`, which sampled the leaf. They need neither noisy steps
nor probabilities of steps, and have the same gradient where the two policies are equal, but for how they weight noise
levels: the slope of the matching error times the leaf's advantage.
"""

import torch

from ..proto.settings import LearnerSettings
from .leaf_rows import NoisedLeaves
from .objective import Objective, clipped_objective

SMALLEST_ERROR = 1e-5
"""Minimum mean absolute error by which an error is divided."""


def leaf_objective(new: torch.Tensor, old: torch.Tensor, batch: NoisedLeaves, given: LearnerSettings) -> Objective:
    """The objective of a batch as the settings have it.

    `new` and `old` are the velocities of both policies, float32 [R, *latent_shape]; only `new` carries a gradient.
    """
    if given.objective == "awm":
        return awm_objective(new, old, batch, given.clip_range)
    return Objective(nft_loss(new, old, batch, given.nft.strength), torch.zeros_like(batch.merits, dtype=torch.bool))


def nft_loss(new: torch.Tensor, old: torch.Tensor, batch: NoisedLeaves, strength: float) -> torch.Tensor:
    """DiffusionNFT's objective (arXiv 2509.16117, eq. 5, over beta), scalar: the weighted sum of the rows.

    It pulls old + beta * (new - old) to the velocity of a leaf in proportion to its merit, and old - beta * (new - old)
    in proportion to 1 - merit. The error of a velocity is that of the leaf that it predicts, squared, over its mean
    size: so all noise levels weigh alike.
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


def awm_objective(new: torch.Tensor, old: torch.Tensor, batch: NoisedLeaves, clip_range: float) -> Objective:
    """AWM's objective (arXiv 2509.25050): PPO's, of the ratio of a leaf's likelihoods under both policies.

    The log-likelihood is minus the squared error of the velocity, averaged over latent dimensions. An advantage is
    relative to the largest that `advantage.clip` allows: from -1 to 1.
    """
    inner = tuple(range(1, new.ndim))
    own = (batch.states - batch.leaves) / batch.sigmas.reshape(-1, *[1] * (new.ndim - 1))
    likely, before = (-((velocity - own) ** 2).mean(inner) for velocity in (new, old))
    return clipped_objective(likely, before, 2 * batch.merits - 1, batch.weights, clip_range)
