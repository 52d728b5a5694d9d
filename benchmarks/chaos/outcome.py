"""What faults may not change: a run's figures and weights, and that nothing of it is left when it has ended."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ...cluster.on_ray.names import application_name
from ...cluster.run.folder import RunFolder
from ...proto.errors import RunFailed
from ..support.local_cluster import Nodes, title_of, wait_until
from .run import Run

TIMES = (
    "started",
    "seconds",
    "phase_seconds",
    "busy_seconds",
    "cpu_seconds",
    "gpu_seconds",
    "utilisation",
    "reward_models",
    "scoring_hidden",
)
"""Figures of an iteration that depend on time, and so differ between runs."""
CONTROLLER = ("Controller", "controller-")
"""Titles of the process: idle, and at work."""


def figures(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The figures of every iteration except its times, and the last weights."""
    run = RunFolder(folder)
    lines = [{key: value for key, value in line.items() if key not in TIMES} for line in run.lines("metrics")]
    return lines, safetensors.torch.load_file(run.checkpoint(run.done) / "weights.safetensors")


def check_same(run: Run, expected: Path, iterations: int) -> None:
    """Raises RunFailed unless the run has come to the same as the one in `expected`."""
    (lines, weights), (true_lines, true_weights) = figures(run.folder), figures(expected)
    if [line["iteration"] for line in lines] != list(range(1, iterations + 1)):
        raise RunFailed(f"{run.name}: iterations are {[line['iteration'] for line in lines]}")
    for line, true in zip(lines, true_lines, strict=True):
        if different := [key for key in true if line[key] != true[key]]:
            raise RunFailed(f"{run.name}: iteration {line['iteration']} has other {different}")
    if any(not torch.equal(weights[name], true_weights[name]) for name in true_weights):
        raise RunFailed(f"{run.name}: other weights")


def check_gone(nodes: Nodes, name: str, others: bool = False) -> None:
    """Raises RunFailed if a run that has ended has left a process or a Serve replica; with `others` in progress, which
    have processes of the same titles, a Serve replica."""
    processes = () if others else ("RolloutActor", "LearnerActor", *CONTROLLER)
    titles = (f"ServeReplica:{application_name(name)}", *processes)

    def left() -> list[str]:
        return [title_of(process) for process in nodes.processes(titles)]

    wait_until(lambda: not left(), 30, lambda: f"{name} has left {left()}")
