"""How an update is kept near the policy that sampled: by the clipped ratio, or by how far each mean has moved."""

from __future__ import annotations

import torch

from ..proto.schedule import Schedule
from ..proto.settings import RunSettings
from ..rollout_workers.kernels import CoefficientTable
from ..rollout_workers.noise import edge_noise
from .objective import Objective, clipped_objective
from .rows import MicroBatch


def edge_objective(
    settings: RunSettings,
    iteration: int,
    schedule: Schedule,
    transitions: CoefficientTable,
    batch: MicroBatch,
    means: torch.Tensor,
    logprobs: torch.Tensor,
) -> Objective:
    """The objective of a batch's edges as `learner.trust_region` has it.

    `means` are those after each parent state, float32 [R, *latent_shape], and `logprobs` those of the edges, [E]; both
    carry a gradient. The trees of the batch are those of `iteration`, with this schedule.
    """
    given = settings.learner
    if given.trust_region == "clip":
        return clipped_objective(logprobs, batch.logprobs, batch.advantages, batch.weights, given.clip_range)
    steps = batch.steps[batch.parents]
    noise = sampled_noise(batch, settings.seed, iteration, schedule)
    new, old = means[batch.parents], transitions.drawn_around(steps, batch.children, noise)
    if given.trust_region == "divergence":
        divergences = transitions.kl(steps, new.detach(), old)
        return masked_objective(
            logprobs, batch.logprobs, batch.advantages, batch.weights, divergences, given.divergence_limit
        )
    lengths = transitions.length.to(new.device)[steps]
    return guarded_objective(new - old, noise, batch.advantages, batch.weights, lengths, given.clip_range)


def sampled_noise(batch: MicroBatch, seed: int, iteration: int, schedule: Schedule) -> torch.Tensor:
    """The noise with which the edges of a batch were sampled, float32 [E, *latent_shape]; 0 in padding."""
    if not batch.edges:
        return torch.zeros_like(batch.children, dtype=torch.float32)
    shape = batch.children.shape[1:]
    drawn = [edge_noise(seed, iteration, tree, node, schedule, shape) for tree, node in batch.edges]
    return torch.stack(drawn).to(batch.children.device)


def guarded_objective(
    moves: torch.Tensor,
    noise: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    lengths: torch.Tensor,
    clip_range: float,
) -> Objective:
    """PPO's objective of normalised ratios, over the step's length (GRPO-Guard, arXiv 2510.22319, eqs. 8 and 12).

    The normalised log ratio is std * (log ratio + ||move||^2 / (2 std^2)), averaged over latent dimensions, where an
    edge's move is that of its transition's mean since it was sampled. That is the mean of noise * move: its expectation
    is 0, and the noise of the step doesn't scale it. `moves` and `noise` are float32 [E, *latent_shape], the others
    [E]; only `moves` carries a gradient.
    """
    log_ratios = (noise * moves).flatten(1).mean(dim=1)
    return clipped_objective(log_ratios, torch.zeros_like(log_ratios), advantages, weights / lengths, clip_range)


def masked_objective(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    divergences: torch.Tensor,
    limit: float,
) -> Objective:
    """Sum over edges of weight * -rho * A, without those that would stray further (Flow-DPPO, arXiv 2606.11025).

    An edge is left out if its transition's KL divergence since it was sampled is above `limit`, and its advantage
    pulls the ratio rho further from 1: A > 0 and rho > 1, or A < 0 and rho < 1. All arguments float32 [E]; only
    `logprobs` carries a gradient.
    """
    ratios = torch.exp(logprobs - old_logprobs)
    left_out = ((divergences > limit) & ((ratios - 1) * advantages > 0)).detach()
    gains = torch.where(left_out, 0.0, ratios * advantages)
    return Objective(loss=-(weights * gains).sum(), clipped=left_out)
