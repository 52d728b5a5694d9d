"""What the processes of a run on Ray tell each other, beside tasks and trees."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A version of the weights in the object store."""

    version: int
    reference: Any
    """To `Packed` tensors by name, or to None where learner and sampler share one copy."""


@dataclass(frozen=True)
class ProcessInfo:
    """Where a process runs."""

    pid: int
    node: str
    """Its address."""
    node_id: str
    exporter: str
    """`host:port` of its metrics."""
