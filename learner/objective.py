"""The clipped policy-gradient objective over a micro-batch of edges."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..rollout_workers.kernels import Transitions
from ..rollout_workers.policies.base import Network, Policy
from .rows import MicroBatch


def edge_logprobs(
    policy: Policy, transitions: Transitions, sigmas: Sequence[float], batch: MicroBatch, network: Network | None = None
) -> torch.Tensor:
    """Log-probability of each edge under the present weights, float32 [E]; one network row per parent state."""
    levels = torch.tensor(sigmas, device=batch.states.device)
    velocity = policy.velocity(batch.states, levels[batch.steps], batch.conditioning, network)
    mean = transitions.mean(batch.steps, batch.states, velocity)
    return transitions.logprob(batch.steps[batch.parents], batch.children, mean[batch.parents])


@dataclass(frozen=True)
class Objective:
    """The loss of some edges and what to know about it."""

    loss: torch.Tensor
    """Scalar, to be minimised."""
    clipped: torch.Tensor
    """Whether clipping took an edge's gradient away, bool [E]."""


def clipped_objective(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    clip_range: float,
) -> Objective:
    """Sum over edges of weight * -min(rho * A, clip(rho, 1 - c, 1 + c) * A), rho = exp(new - old) (PPO).

    All arguments float32 [E]; only `logprobs` carries a gradient.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    free = ratio * advantages
    held = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    return Objective(
        loss=-(weights * torch.minimum(free, held)).sum(),
        clipped=(held < free).detach(),
    )
