"""Loops of a run whose iterations are timed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...cluster.on_ray.driver import RayLoop
from ...cluster.run.in_process import InProcessLoop
from ...cluster.run.loop import IterationReport, Loop
from ...proto.settings import RunSettings
from .demo import PROMPTS


@contextmanager
def on_ray(settings: RunSettings, prompts: Sequence[str] = PROMPTS) -> Iterator[RayLoop]:
    """A loop on a Ray cluster that is started for it, when all rollout workers have loaded."""
    with TemporaryDirectory() as folder, closing(RayLoop(settings, Path(folder), prompts, None)) as loop:
        while settings.placement == "separate" and not _all_idle(loop.status(), settings.pools.rollout_workers.count):
            time.sleep(0.1)
        yield loop


def _all_idle(status: dict[str, Any], workers: int) -> bool:
    return [worker["state"] for worker in status["pools"]["rollout_workers"]] == ["idle"] * workers


@contextmanager
def running(settings: RunSettings, prompts: Sequence[str]) -> Iterator[Loop]:
    """A loop in this process or on Ray, as the settings say."""
    if settings.execution == "ray":
        with on_ray(settings, prompts) as loop:
            yield loop
    else:
        with closing(InProcessLoop(settings, prompts)) as loop:
            yield loop


def timed(loop: Loop, iteration: int) -> tuple[float, IterationReport]:
    """Seconds of an iteration, and its report."""
    start = time.perf_counter()
    report = loop.iterate(iteration)
    return time.perf_counter() - start, report
