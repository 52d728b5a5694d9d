"""The whole loop in one process, without Ray: sample, score, learn, publish.

Rollout worker and learner share one policy, so that publishing sends nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..learner.learner import Learner, UpdateStats
from ..proto.scoring import ScoreRequest
from ..proto.settings import RunSettings
from ..proto.tree import Task, Tree
from ..reward_service.scorers import Scorers
from ..rollout_workers.policies.load import load_policy
from ..rollout_workers.worker import RolloutWorker

Item = TypeVar("Item")


@dataclass
class Stopwatch:
    """Seconds per phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to phase `name`."""
        start = time.perf_counter()
        try:
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


@dataclass
class IterationReport:
    """What one iteration did."""

    iteration: int
    rewards: dict[str, npt.NDArray[np.float64]]
    """Scores of all leaves by reward, float64 [trees * leaves]."""
    seconds: dict[str, float]
    """By phase: rollout, scoring, learning, publishing."""
    forward_passes: int
    updates: list[UpdateStats]
    media: list[npt.NDArray[np.uint8]]
    """Leaves of the first trees, each uint8 [leaves, height, width, 3]."""


class PlainLoop:
    """One process that holds the policy, the rewards and the learner."""

    SHOWN_TREES = 4

    def __init__(self, settings: RunSettings) -> None:
        """Loads all models. Raises ValueError for settings that don't fit them."""
        self.settings = settings
        self.schedule = settings.schedule.build()
        self.scorers = Scorers(settings.rewards)
        self.policy = load_policy(settings.policy)
        self.worker = RolloutWorker(self.policy, self.schedule, settings.rollout)
        self.learner = Learner(self.policy, settings)
        self.worker.weights_version = self.learner.version

    def iterate(
        self, iteration: int, prompts: Sequence[str], progress: Callable[[str, float], None] = lambda phase, share: None
    ) -> IterationReport:
        """One iteration. `progress` is told the phase and how much of it is done, 0 to 1."""
        watch = Stopwatch()
        trees = [Tree(number, prompt, self.schedule) for number, prompt in enumerate(prompts)]
        media: dict[int, list[npt.NDArray[np.uint8]]] = {}
        leaves_done = 0
        for task in self._tasks(iteration, prompts):
            with watch.phase("rollout"):
                parts = self.worker.sample(task)
            for part in watch.drawn("rollout", parts):
                tree = trees[part.tree]
                tree.add(part)
                with watch.phase("scoring"):
                    request = ScoreRequest(part.media, [tree.prompt] * len(part.media), list(self.settings.rewards))
                    tree.add_scores(part.leaves, self.scorers.score(request).scores)
                if part.tree < self.SHOWN_TREES:
                    media.setdefault(part.tree, []).append(part.media)
                leaves_done += len(part.leaves)
                progress("rollout", leaves_done / (len(trees) * self.schedule.leaves))
        updates = []
        with watch.phase("learning"):
            for number, tree in enumerate(trees):
                self.learner.take(tree)
                if (number + 1) % self.learner.trees_per_update == 0:
                    updates.append(self.learner.update())
                progress("learning", (number + 1) / len(trees))
        with watch.phase("publishing"):
            # One policy in one process: the worker samples with the learner's own parameters.
            _, self.worker.weights_version = self.learner.publish()
        return IterationReport(
            iteration=iteration,
            rewards={name: np.concatenate([tree.rewards[name] for tree in trees]) for name in self.settings.rewards},
            seconds=watch.seconds,
            forward_passes=len(trees) * self.schedule.forward_passes,
            updates=updates,
            media=[np.concatenate(media[number]) for number in sorted(media)],
        )

    def _tasks(self, iteration: int, prompts: Sequence[str]) -> Iterator[Task]:
        """Fixed groups of consecutive trees."""
        size = self.settings.rollout.trees_per_task
        for first in range(0, len(prompts), size):
            group = tuple(prompts[first : first + size])
            numbers = tuple(range(first, first + len(group)))
            yield Task(iteration, numbers, group, self.settings.seed, self.worker.weights_version)
