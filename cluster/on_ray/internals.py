"""Private parts of Ray that this project uses for want of public ones. `pyproject.toml` bounds its version."""

import time
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2


def free_resources() -> dict[str, dict[str, float]]:
    """Node -> what is free on it, by resource."""
    return ray._private.state.available_resources_per_node()


def draining_nodes() -> set[str]:
    """The nodes that are about to go."""
    return set(ray._private.state.state.get_draining_nodes())


def living_actors() -> list[dict[str, Any]]:
    """The actors of all jobs that are alive."""
    return [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]


def drain_node(node: str, seconds: float) -> str | None:
    """Tell Ray that a node goes away in so many seconds; returns why Ray refuses, or None."""
    client: Any = ray._private.worker.global_worker.gcs_client
    accepted, why = client.drain_node(
        node,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the machine is about to be taken away",
        time.time_ns() // 1_000_000 + int(1000 * seconds),
    )
    return None if accepted else str(why)
