"""The device that a run on a Ray cluster will have: the kind of GPU that its nodes report."""

from collections.abc import Iterable, Mapping
from typing import Any

import ray

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ..plan.device import Device, calibrated, core_here, uses_gpus
from ..plan.gpus import GPUS, Gpu
from .connect import visiting

KIND_PREFIX = "accelerator_type:"
"""How the resource begins with which Ray names a node's kind of GPU."""


def device_of_cluster(settings: RunSettings, address: str) -> Device:
    """The kind of GPU of a cluster's nodes, the one with the least memory if there are several, with its calibration if
    this machine has one; for a run without GPUs a core of this machine.

    Raises InputError for a cluster that can't be reached, and for kinds that aren't known.
    """
    if not uses_gpus(settings):
        return core_here()
    with visiting(address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return calibrated(smallest_gpu(nodes))


def smallest_gpu(nodes: Iterable[Mapping[str, Any]]) -> Gpu:
    """The GPU with the least memory, of the kinds that nodes report among their resources, such as
    `accelerator_type:H100` and `accelerator_type:GeForce-RTX-4090`. Raises InputError for unknown kinds, and for
    none."""
    kinds = {name.removeprefix(KIND_PREFIX) for node in nodes for name in node if name.startswith(KIND_PREFIX)}
    known = {kind: GPUS.get(kind.rpartition("-")[2].lower()) for kind in kinds}
    found = [gpu for gpu in known.values() if gpu]
    if not found or len(found) < len(known):
        unknown = ", ".join(sorted(kind for kind, gpu in known.items() if not gpu)) or "none"
        raise InputError(
            f"sizes are auto, and the Ray cluster reports GPUs of which nothing is known ({unknown}): give numbers "
            f"(`branchgrpo check` says what fits the GPUs {', '.join(GPUS)})"
        )
    return min(found, key=lambda gpu: gpu.memory)
