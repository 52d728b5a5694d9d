"""The interface of a training loop, on Ray or in one process, and its reports."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ...proto.schedule import Schedule
from ...proto.settings import RunSettings
from ...proto.tracing import span
from ...proto.tree import Task
from ...proto.update_stats import UpdateStats
from .evaluation import Evaluation

Item = TypeVar("Item")
Progress = Callable[[str, float], None]
"""Is told the phase of an iteration and how much of it is done, 0 to 1."""

SHOWN_TREES = 4
"""Trees of an iteration whose leaves can be looked at."""


@dataclass
class IterationReport:
    """What one iteration did."""

    iteration: int
    rewards: dict[str, npt.NDArray[np.float64]]
    """Scores of all leaves by reward, float64 [trees * leaves]."""
    seconds: dict[str, float]
    """By phase: rollout, scoring, waiting, learning, publishing. On Ray they overlap."""
    forward_passes: int
    updates: list[UpdateStats]
    media: list[Any]
    """Leaves of the first trees, each uint8 [leaves, height, width, 3]; in a controller's report, references to parts
    of them."""
    diversity: float
    """Of the leaves of a tree (`rollout_workers/diversity.py`), mean over trees."""
    scoring_hidden: float = 0.0
    """Share of the scoring time during which trees were being sampled."""
    learner_draining: bool = False
    """Whether a learner rank's node is about to go, so that it must be set up elsewhere."""
    left_out: int = 0
    """Trees that got no score, of which nothing is learned."""
    first_score: float = 1.0
    """Share of the iteration's forward passes that were done when the first leaf was scored."""


class Loop(Protocol):
    """The four calls of an iteration (sample, score, learn, publish), and what a run needs beside them."""

    def iterate(
        self, iteration: int, prompts: Sequence[str], upcoming: Sequence[str] | None, progress: Progress
    ) -> IterationReport:
        """One iteration over `prompts`. `upcoming` are those of the next one, if there will be one."""

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Those of `prompts` of which the policy takes the beginning only."""

    def evaluate(self, prompts: Sequence[str]) -> Evaluation:
        """Deterministic samples with the newest weights, scored."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint, as a whole folder."""

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""

    def export(self, folder: Path) -> None:
        """Write what was trained in diffusers' format."""

    def restart(self) -> None:
        """Set up everything anew, after something of it was lost; then `load`."""

    def close(self) -> None:
        """Give back whatever the loop holds. No other call may follow."""


def training_tasks(
    settings: RunSettings, iteration: int, prompts: Sequence[str], schedule: Schedule, version: int
) -> list[Task]:
    """The tasks of an iteration: fixed groups of consecutive trees, whoever samples them."""
    size = settings.rollout.trees_per_task
    groups = [range(first, min(first + size, len(prompts))) for first in range(0, len(prompts), size)]
    return [
        Task(iteration, tuple(group), tuple(prompts[tree] for tree in group), schedule, settings.seed, version)
        for group in groups
    ]


@dataclass
class Stopwatch:
    """Seconds per phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, **attributes: Any) -> Iterator[None]:
        """Add the time spent inside to phase `name`, and to the trace, there with `attributes`."""
        start = time.perf_counter()
        try:
            with span(name, **attributes):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def drawn(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, with the time it takes to make each added to phase `name`."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
