"""The floating-point operations of a run's parts, counted on shapes without numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...proto.settings import RunSettings
from ...rollout_workers.policies.base import collate
from ...rollout_workers.policies.pipeline import PipelinePolicy
from .meter import metered
from .reward_shapes import reward_shapes
from .shapes import conditioning_shapes, policy_shapes


@dataclass(frozen=True)
class Work:
    """Floating-point operations of what a run computes again and again."""

    forward_row: float
    """A row of the rollout through the network, with guidance twice."""
    trained_row: float
    """A row of the learner: forward pass, with gradient checkpointing once more, backward pass, and the forward pass of
    the KL term's reference; with `learner.keep_graph` the backward pass alone."""
    decode_leaf: float
    """A picture or clip through the autoencoder's decoder."""
    score_leaf: Mapping[str, float | None]
    """Reward -> a picture or clip through its model; None if that isn't known, such as of a service or own code."""


def count_work(settings: RunSettings, policy: PipelinePolicy | None = None) -> Work:
    """The work of a run with these settings, whose `policy_shapes` may be given.

    Raises InputError as `policy_shapes` does.
    """
    policy, learner = policy or policy_shapes(settings), settings.learner
    call = network_call(policy, rows=1)
    forward = count_flops(torch.no_grad()(call))
    trained = count_flops(lambda: backward(call()))
    frames = settings.policy.frames
    return Work(
        forward_row=forward,
        trained_row=trained + forward * (bool(learner.kl_weight) - learner.keep_graph),
        decode_leaf=count_flops(decode_call(policy, leaves=1)),
        score_leaf={name: _score(reward, frames) for name, reward in reward_shapes(settings.rewards).items()},
    )


def count_flops(call: Callable[[], object]) -> float:
    """Floating-point operations of a call on shapes."""
    with metered() as meter:
        call()
    return meter.flops


def network_call(policy: Any, rows: int) -> Callable[[], torch.Tensor]:
    """A pass of so many rows through the network, as the policy makes it."""
    conditioning = conditioning_shapes(policy)

    def call() -> torch.Tensor:
        states = torch.empty(rows, *policy.latent_shape, device="meta")
        return policy.velocity(states, torch.full([rows], 0.5), collate([conditioning] * rows))

    return call


def backward(velocity: torch.Tensor) -> None:
    """The backward pass from a velocity, if anything trained is behind it."""
    if velocity.requires_grad:
        velocity.sum().backward()


def decode_call(policy: Any, leaves: int) -> Callable[[], torch.Tensor]:
    """So many leaves through the decoder."""
    return lambda: policy.decode(torch.empty(leaves, *policy.latent_shape, device="meta"))


def _score(call: Callable[[int], object] | None, frames: int) -> float | None:
    return None if call is None else count_flops(lambda: call(frames))
