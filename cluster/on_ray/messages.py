"""Messages between the processes of a run on Ray, besides tasks and trees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WeightsRef:
    """A version of the weights in the object store."""

    version: int
    reference: Any
    """To `PackedTensor` tensors by name, or to None where learner and sampler share one copy."""


@dataclass(frozen=True)
class ProcessInfo:
    """Where a process runs."""

    pid: int
    node: str
    """Its address."""
    node_id: str
    exporter: str
    """`host:port` of its metrics."""


@dataclass(frozen=True)
class Sizes:
    """What pools have been scaled to while the run went on; the others are as the recipe says."""

    rollout_workers: int | None = None
    rewards: Mapping[str, int] = field(default_factory=dict)
    """Reward model -> replicas."""


@dataclass(frozen=True)
class ControllerState:
    """What the driver is told of the controller while it waits for it."""

    phase: str
    share: float
    """How much of the phase is done, 0 to 1."""
    sizes: Sizes
