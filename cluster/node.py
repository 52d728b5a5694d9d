"""A node that is about to go: its work is moved off it in time.

Clouds and Kubernetes give notice before they take a machine away: SIGTERM, or a hook that is called. Ray is told then;
it places nothing there any more. The runs notice: rollout workers finish their task and go, a learner rank writes a
checkpoint and is set up elsewhere, and Serve moves its replicas.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2

from ..proto.errors import InputError
from .stop import StopRequest

OURS = ("RolloutActor", "LearnerActor", "ColocatedActor", "Controller", "ServeReplica")
"""What names of classes of actors begin with that work for runs."""
POLL_SECONDS = 0.5
END_SECONDS = 30


def drain(address: str, name: str | None, seconds: float) -> list[str]:
    """Take the node `name` of the cluster at `address` (default: the one of this machine) out of use.

    Waits until no process of a run is on it, for so many seconds at most; returns those that are left. Raises
    InputError if there is no such node.
    """
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError) as error:
        raise InputError(f"no Ray can be reached at '{address}'; name its head with --address") from error
    try:
        node = _node(name)
        _announce(node, seconds)
        limit = time.monotonic() + seconds
        while (left := _processes_on(node)) and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)
        return left
    finally:
        ray.shutdown()


def join(address: str, seconds: float, options: Sequence[str]) -> int:
    """Make this machine a node of the cluster at `address` until SIGTERM or Ctrl-C, which drain it for so many seconds.

    `options` are passed on to `ray start`. Returns its exit status, 0 if it was asked to end.
    """
    name = f"{os.uname().nodename}-{uuid.uuid4().hex[:8]}"
    ray_command = str(Path(sys.executable).with_name("ray"))
    with StopRequest().listening() as stop:
        # In a session of its own: a signal to the whole group is for us, who pass it on when the node is empty.
        node = subprocess.Popen(
            [ray_command, "start", f"--address={address}", f"--node-name={name}", "--block", *options],
            start_new_session=True,
        )
        try:
            while stop.signum is None and node.poll() is None:
                time.sleep(POLL_SECONDS)
            if node.poll() is None:
                drain(address, name, seconds)
        finally:
            _end(node)
    return 0 if stop.signum is not None else node.returncode


def _node(name: str | None) -> str:
    """Id of the living node `name`, or of the one of this machine."""
    here = ray.util.get_node_ip_address()
    living = [node for node in ray.nodes() if node["Alive"]]
    for node in living:
        if node["NodeName"] == name if name else node["NodeManagerAddress"] == here:
            return str(node["NodeID"])
    names = sorted(node["NodeName"] for node in living)
    raise InputError(f"the cluster has no node {f'named {name!r}' if name else f'at {here}'}; there are {names}")


def _announce(node: str, seconds: float) -> None:
    client: Any = ray._private.worker.global_worker.gcs_client
    accepted, why = client.drain_node(
        node,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the machine is about to be taken away",
        time.time_ns() // 1_000_000 + int(1000 * seconds),
    )
    if not accepted:
        raise InputError(f"Ray doesn't drain node {node}: {why}")


def _processes_on(node: str) -> list[str]:
    """The processes of runs on a node, as `class (pid)`."""
    return [
        f"{actor['ActorClassName']} ({actor['Pid']})"
        for actor in ray._private.state.actors().values()
        if actor["Address"]["NodeID"] == node and actor["State"] == "ALIVE" and actor["ActorClassName"].startswith(OURS)
    ]


def _end(node: subprocess.Popen[bytes]) -> None:
    """End `ray start --block` and all that it has started."""
    if node.poll() is None:
        node.terminate()
    try:
        node.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
