"""Messages between the processes of a run on Ray, besides tasks and trees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...proto.settings import RunSettings
from ...proto.usage import Usage


@dataclass(frozen=True)
class WeightsRef:
    """A version of the weights in the object store, as processes of one node read it (`broadcast.read`)."""

    version: int
    pieces: Any
    """A reference to a list: for every piece, references to copies of it, of which the learner's own is the last."""


@dataclass(frozen=True)
class PublishedWeights:
    """A version of the weights, for processes of any node."""

    version: int
    own: WeightsRef
    """Where the learner has put it."""
    on_nodes: Mapping[str, WeightsRef] = field(default_factory=dict)
    """Node id -> copies there."""

    def at(self, node: str) -> WeightsRef:
        """The reference for processes of a node."""
        return self.on_nodes.get(node, self.own)


@dataclass(frozen=True)
class NewVersion:
    """What a learner rank says of a version before its pieces come."""

    version: int
    pieces: int
    """Number of pieces; 0 on ranks other than 0, and where learner and sampler share one copy."""
    usage: Usage


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
    """Address of its node."""
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
