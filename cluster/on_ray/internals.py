"""Private parts of Ray that this project uses for want of public ones. `pyproject.toml` bounds its version."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray.core.generated import autoscaler_pb2


def versioned(version: str) -> dict[str, Any]:
    """Options of a deployment whose replicas stay as they are while `version`, code, arguments and other options do."""
    return {"version": version, "_internal": True}


def streaming(max_unread: int) -> dict[str, Any]:
    """Options of a method that returns objects one by one, and pauses while so many of them are unread."""
    return {"num_returns": "streaming", "_generator_backpressure_num_objects": max_unread}


def free_resources() -> dict[str, dict[str, float]]:
    """Node -> what is free on it, by resource."""
    return ray._private.state.available_resources_per_node()


def draining_nodes() -> set[str]:
    """The nodes that are about to go."""
    return set(ray._private.state.state.get_draining_nodes())


def living_actors() -> list[dict[str, Any]]:
    """The actors of all jobs that are alive."""
    return [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]


def dead_among(actors: Sequence[Any]) -> list[Any]:
    """Those of some actors that Ray knows to be dead."""
    known = ray._private.state.actors()
    return [actor for actor in actors if known.get(actor._actor_id.hex(), {}).get("State") == "DEAD"]


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


def shut_down() -> None:
    """Disconnect from Ray. If this process has started it, end it with everything that runs in it.

    Its processes block SIGTERM (`connect`): `ray.shutdown` would wait a second for each before killing it, and agents
    of a killed raylet would look for it for another minute.
    """
    node = ray._private.worker._global_node
    started = [info.process for infos in node.all_processes.values() for info in infos] if node else []
    within: list[psutil.Process] = []
    for process in started:
        process.terminate = process.kill
        with suppress(psutil.NoSuchProcess):
            within += psutil.Process(process.pid).children(recursive=True)
    ray.shutdown()
    for process in within:
        with suppress(psutil.NoSuchProcess):
            process.kill()
