"""The device that a run's work is planned for, and what was measured on it: named, or this machine's."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from .calibration import Calibration, device_of, find_calibration, load_calibration
from .gpus import GPUS, Gpu, find_gpu, gpu_of_device
from .measuring import device_name

CORE_FLOPS = 50e9
"""FLOP/s of a processor core of which nothing was measured; assumed."""
Device = tuple[Gpu, Calibration]
"""A kind of GPU or processor core, with the shares of its peak that were measured on it, if any were."""


def find_device(gpu: str, file: Path | None) -> Device:
    """The GPU of that name with its calibration: the one in `file`, the one at its device's place, or none.

    `cpu` is a core of this machine, of which nothing is known unless it was calibrated. Raises InputError for unknown
    names and files.
    """
    if gpu.lower() == "cpu":
        name = device_name(torch.device("cpu"))
        if not (calibration := load_calibration(file) if file else find_calibration(name)):
            command = "branchgrpo calibrate RECIPE policy.device=cpu"
            raise InputError(f"--gpu cpu: nothing is known of {name}; run `{command}` first")
        return device_of(calibration), calibration
    found = find_gpu(gpu, "cpu")
    if not file:
        return calibrated(found)
    calibration = load_calibration(file)
    if calibration.device != found.device:
        raise InputError(f"--calibration {file} is of {calibration.device}, and --gpu {gpu} is {found.device}")
    return found, calibration


def device_here(settings: RunSettings) -> Device:
    """The device of this machine that a run with these settings would use, with its calibration if there is one.

    Raises InputError for a GPU that isn't there, or isn't known.
    """
    return known_device(_gpu_here()) if uses_gpus(settings) else core_here()


def uses_gpus(settings: RunSettings) -> bool:
    """Whether a run's policy is on a GPU: on Ray if its processes reserve one, in one process if there is one."""
    if settings.execution == "ray":
        pools = settings.pools
        return bool(pools.learner.gpus or (settings.placement == "separate" and pools.rollout_workers.gpus))
    return settings.policy.device != "cpu" and (settings.policy.device != "auto" or torch.cuda.is_available())


def known_device(name: str) -> Device:
    """The GPU that torch calls by this name, with its calibration. Raises InputError for one that isn't known."""
    if gpu := gpu_of_device(name):
        return calibrated(gpu)
    raise InputError(
        f"sizes are auto, and nothing is known of the GPU {name}: give numbers (`branchgrpo check` says what fits the "
        f"GPUs {', '.join(GPUS)})"
    )


def calibrated(gpu: Gpu) -> Device:
    """The GPU with its calibration, if this machine has one."""
    return gpu, find_calibration(gpu.device) or Calibration()


def core_here() -> Device:
    """A core of this machine."""
    name = device_name(torch.device("cpu"))
    if calibration := find_calibration(name):
        return device_of(calibration), calibration
    calibration = Calibration(name, CORE_FLOPS, "assumed")
    return device_of(calibration), calibration


def host_share(processes: int) -> float:
    """Bytes of this machine's memory that each of so many processes may take: half of it is for everything else."""
    return psutil.virtual_memory().total / 2 / processes


def _gpu_here() -> str:
    """The name of this machine's first GPU. Another process asks for it, because it then holds some of its memory."""
    ask = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=os.environ, check=False)
    if name := done.stdout.strip():
        return name
    raise InputError("sizes are auto, and the run's processes reserve GPUs, which this machine hasn't: give numbers")
