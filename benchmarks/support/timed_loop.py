"""Loops of a run whose iterations are timed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ...cluster.on_ray.driver import RayLoop
from ...cluster.run.loop import IterationReport, Loop
from ...proto.settings import RunSettings
from .demo import PROMPTS


@contextmanager
def on_ray(settings: RunSettings, prompts: Sequence[str] = PROMPTS) -> Iterator[RayLoop]:
    """A loop on a Ray cluster that is started for it."""
    with TemporaryDirectory() as folder, closing(RayLoop(settings, Path(folder), prompts, None)) as loop:
        yield loop


def timed(loop: Loop, iteration: int) -> tuple[float, IterationReport]:
    """Seconds of an iteration, and its report."""
    start = time.perf_counter()
    report = loop.iterate(iteration)
    return time.perf_counter() - start, report
