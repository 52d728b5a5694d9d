"""Nodes that join a Ray cluster, and nodes that are drained before they are taken away.

Clouds and Kubernetes give notice before they take a machine away: they send SIGTERM or call a hook. Ray is then asked
to drain the node, and places nothing there any more. The runs notice it: rollout workers finish their task and leave, a
learner rank writes a checkpoint and restarts elsewhere, and Serve moves its replicas.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from ...proto.errors import InputError
from ..on_ray.address import nodes_here
from ..on_ray.connect import visiting
from ..on_ray.internals import drain_node, living_actors
from ..run.stop import StopRequest

ACTOR_PREFIXES = ("RolloutActor", "LearnerActor", "ColocatedActor", "Controller", "ServeReplica")
"""Prefixes of the class names of actors that work for runs."""
POLL_SECONDS = 0.5
END_SECONDS = 30
HEAD = "node:__internal_head__"
"""The resource that Ray gives the head node of a cluster."""


def drain(address: str, name: str | None, seconds: float) -> tuple[str, list[str]]:
    """Take the node `name` of the cluster at `address` (default: the only one of this machine) out of use.

    Waits until no process of a run is on it, for so many seconds at most; returns the node's name, and the processes
    that are left. Raises InputError if there is no such node, or if it is the head, with which all runs would end.
    """
    with visiting(address):
        node = _node(address, name)
        if HEAD in node["Resources"]:
            raise InputError(f"node {node['NodeName']} is the head of the cluster at '{address}': no run outlives it")
        _announce(node["NodeID"], seconds)
        limit = time.monotonic() + seconds
        while (left := _processes_on(node["NodeID"])) and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)
        return node["NodeName"], left


def join(address: str, seconds: float, options: Sequence[str]) -> int:
    """Make this machine a node of the cluster at `address` until SIGTERM or Ctrl-C, which drain it for so many seconds.

    `find_ray` has found it. `options` are passed on to `ray start`. Returns its exit status, 0 if it was asked to end.
    """
    name = given_name(options) or f"{os.uname().nodename}-{uuid.uuid4().hex[:8]}"
    ray_command = str(Path(sys.executable).with_name("ray"))
    with StopRequest().listening() as stop:
        # In a session of its own: a signal to the whole group is for us, who pass it on when the node is empty.
        node = subprocess.Popen(
            [ray_command, "start", f"--address={address}", "--block", *options, f"--node-name={name}"],
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


def given_name(options: Sequence[str]) -> str | None:
    """The node's name among the options of `ray start`, as `--node-name=NAME` or `--node-name NAME`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--node-name")
    try:
        return parser.parse_known_args(options)[0].node_name
    except ArgumentError as error:
        raise InputError(str(error)) from error


def _node(address: str, name: str | None) -> dict[str, Any]:
    """The living node `name`, or the only one of this machine."""
    here = {node.node_id for node in nodes_here()}
    living: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    meant = [node for node in living if (node["NodeName"] == name if name else node["NodeID"] in here)]
    if len(meant) == 1:
        return meant[0]
    what = f"named '{name}'" if name else "on this machine"
    names = ", ".join(sorted(node["NodeName"] for node in meant or living))
    raise InputError(
        f"the cluster at '{address}' has {len(meant) or 'no'} {'nodes' if meant else 'node'} {what}; name one with "
        f"--node-name: there {'are' if ',' in names else 'is'} {names}"
    )


def _announce(node: str, seconds: float) -> None:
    if why := drain_node(node, seconds):
        raise InputError(f"Ray doesn't drain node {node}: {why}")


def _processes_on(node: str) -> list[str]:
    """The processes of runs on a node, as `class (pid)`."""
    return [
        f"{actor['ActorClassName']} ({actor['Pid']})"
        for actor in living_actors()
        if actor["Address"]["NodeID"] == node and actor["ActorClassName"].startswith(ACTOR_PREFIXES)
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
