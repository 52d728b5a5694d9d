"""Messages between the processes of a run on Ray, besides tasks and trees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...proto.settings import RunSettings


@dataclass(frozen=True)
class WeightsRef:
    """A version of the weights in the object store."""

    version: int
    reference: Any
    """To `PackedTensor` tensors by name, or to None where learner and sampler share one copy."""


@dataclass(frozen=True)
class Launch:
    """What a process of a run is launched with."""

    settings: RunSettings
    directory: tuple[str, str]
    """Name and namespace of the run's controller, which keeps the list of metrics exporters."""
    pool: str
    threads: int
    """CPU threads."""
    rank: int = 0
    ranks: int = 1


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
    """Sizes of the pools that were scaled during the run. The others have the recipe's size."""

    rollout_workers: int | None = None
    rewards: Mapping[str, int] = field(default_factory=dict)
    """Reward model -> replicas."""


@dataclass(frozen=True)
class ControllerState:
    """The controller's progress, which its driver polls while it waits."""

    phase: str
    share: float
    """Fraction of the phase that is done, 0 to 1."""
    sizes: Sizes
