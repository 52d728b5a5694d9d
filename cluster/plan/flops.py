"""The floating-point operations of a run's parts, counted on shapes without numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...proto.settings import RunSettings
from .meter import metered
from .passes import measure


@dataclass(frozen=True)
class Work:
    """Floating-point operations of what a run computes again and again; a multiplication with an addition is two."""

    forward_row: float
    """A row of the rollout through the network, with guidance twice."""
    trained_row: float
    """A row of the learner: forward pass, with gradient checkpointing once more, backward pass, and the forward pass of
    the KL term's reference; with `learner.keep_graph` the backward pass alone."""
    decode_leaf: float
    """A picture or clip through the autoencoder's decoder."""
    score_leaf: Mapping[str, float | None]
    """Reward -> a leaf through its model; None if that isn't known, such as of a service or own code."""


def count_work(settings: RunSettings) -> Work:
    """The work of a run with these settings.

    Raises InputError as the policy itself would, and for one that is over no diffusers pipeline.
    """
    passes, learner = measure(settings, memory=False), settings.learner
    further_passes = bool(learner.kl_weight) - learner.keep_graph
    return Work(
        forward_row=passes.forward.flops,
        trained_row=passes.train.flops + passes.forward.flops * further_passes,
        decode_leaf=passes.decode.flops,
        score_leaf={name: one.flops * passes.rewards[name].each if one else None for name, one in passes.score.items()},
    )


def count_flops(call: Callable[[], object]) -> float:
    """Floating-point operations of a call on shapes."""
    with metered() as meter:
        call()
    return meter.flops
