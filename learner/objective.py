"""The clipped policy-gradient objective over a micro-batch of edges."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..proto.settings import KlScale
from ..rollout_workers.kernels import CoefficientTable
from .rows import MicroBatch


def predicted_means(
    velocity: Callable[..., torch.Tensor], transitions: CoefficientTable, batch: MicroBatch
) -> torch.Tensor:
    """Mean of the state after each parent state, float32 [R, *latent_shape]."""
    sigma = transitions.sigma.to(batch.states.device)[batch.steps]
    predicted = velocity(batch.states, sigma, batch.conditioning)
    return transitions.mean(batch.steps, batch.states, predicted)


def means_logprobs(transitions: CoefficientTable, batch: MicroBatch, means: torch.Tensor) -> torch.Tensor:
    """Log-probability of each edge, given the `means` after its parents, float32 [E]."""
    return transitions.logprob(batch.steps[batch.parents], batch.children, means[batch.parents])


def kl_divergence(
    transitions: CoefficientTable, batch: MicroBatch, means: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """KL of each edge's transition to the reference's, ||mean - mean_ref||^2 / (2 std^2), float32 [E].

    The Gaussian closed form, averaged over latent dimensions like the log-probability.
    """
    rows = transitions.kl(batch.steps, means, reference)
    return rows[batch.parents]


def kl_weights(transitions: CoefficientTable, batch: MicroBatch, scale: KlScale) -> torch.Tensor:
    """Weight of each edge's KL divergence in the KL term, float32 [E]: its own and, with `flow_grpo`, its step's -ds.

    Flow-GRPO (arXiv 2505.05470) divides by the deviation without its factor sqrt(-ds), so that its KL is -ds times the
    exact one.
    """
    if scale == "exact":
        return batch.weights
    return batch.weights * transitions.length.to(batch.weights.device)[batch.steps[batch.parents]]


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
