"""A policy in whose two iterations a node is lost, then a worker, while a learner rank fetches states ahead."""

import os
import signal
from pathlib import Path
from threading import Barrier, Timer
from typing import Any

import torch
from branchgrpo.cluster.on_ray.fetched_states import FetchedStates
from branchgrpo.cluster.on_ray.learner_process import LearnerProcess
from branchgrpo.rollout_workers.policies.flux import FluxPolicy
from faulty_scorers import FOLDER

HANGS_SECONDS = 1.0
"""For so long a node answers nothing before it is gone."""
BOTH_THERE = Barrier(2)
"""The second window's states are fetched when the first window's are there, and before it is learned from."""
fetch_ahead, trees = LearnerProcess.fetch_ahead, FetchedStates.trees


class Lost(FluxPolicy):
    """Its decoder notes which process has sampled last, and by which raylet that was started."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        _note("sampled", f"{os.getpid()} {os.getppid()}")
        return super().decode(latents)


def _note(name: str, text: str) -> None:
    (Path(os.environ[FOLDER]) / name).write_text(text)


def _loses_states(self: LearnerProcess, window: Any) -> None:
    BOTH_THERE.wait()
    folder = Path(os.environ[FOLDER])
    fault = ("node", "worker")[window.iteration - 1]
    if not (folder / fault).exists():
        worker, raylet = map(int, (folder / "sampled").read_text().split())
        _note(fault, str(window.trees[0].number))
        if fault == "worker":
            os.kill(worker, signal.SIGKILL)
        else:
            os.kill(raylet, signal.SIGSTOP)
            Timer(HANGS_SECONDS, os.kill, (raylet, signal.SIGKILL)).start()
    fetch_ahead(self, window)


def _waits_for_the_next(self: FetchedStates, window: Any) -> Any:
    found = trees(self, window)
    if not window.closes_update:
        BOTH_THERE.wait()
    return found


LearnerProcess.fetch_ahead = _loses_states  # type: ignore[method-assign]
FetchedStates.trees = _waits_for_the_next  # type: ignore[method-assign]
