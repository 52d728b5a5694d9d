"""The trees of one iteration, from the tasks that sample them to the scores that complete them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from prometheus_client import Counter

from ...proto.remote_tree import PartHeader, RemoteTree
from ...proto.schedule import Schedule
from ...proto.scoring import ScoreReply
from ...proto.settings import RunSettings
from ...proto.tree import FloatArray, Task, fill_scores
from ..observability import metrics
from ..run.cuts import training_tasks
from ..run.loop import SHOWN_TREES
from ..run.phases import Timeline
from .autoscaling import IterationTiming
from .messages import WeightsRef


@dataclass
class GrowingTree:
    """A tree on its way: headers and references of what has arrived, and scores."""

    number: int
    prompt: str
    schedule: Schedule
    parts: list[tuple[PartHeader, Any]] = field(default_factory=list)
    media: list[Any] = field(default_factory=list)
    """References to pictures that are kept to be looked at."""
    rewards: dict[str, FloatArray] = field(default_factory=dict)
    diversity: float = 0.0
    nodes: int = 0
    leaves: int = 0
    """Leaves that have all their scores."""

    def add(self, header: PartHeader, states: Any) -> None:
        self.parts.append((header, states))
        self.nodes += len(header.nodes)
        if header.diversity is not None:
            self.diversity = header.diversity

    def add_scores(self, header: PartHeader, reply: ScoreReply) -> None:
        fill_scores(self.rewards, self.schedule, header.leaves, reply.scores, f"tree {self.number} ('{self.prompt}')")
        self.leaves += len(header.leaves)

    @property
    def complete(self) -> bool:
        return self.nodes == self.schedule.nodes and self.leaves == self.schedule.leaves


class Iteration:
    """What is known of one iteration's trees while they are sampled and scored."""

    def __init__(
        self, number: int, prompts: Sequence[str], settings: RunSettings, schedule: Schedule, weights: WeightsRef
    ) -> None:
        self.number, self.prompts, self.schedule, self.weights = number, prompts, schedule, weights
        self.tasks = training_tasks(settings, number, prompts, self.schedule, weights.version)
        self.timeline = Timeline()
        self.counted: dict[Counter, float] = {}
        """Seconds of this iteration that counters have already."""
        self.rewards: list[dict[str, FloatArray]] = [{} for _ in prompts]
        self.diversity = np.zeros(len(prompts))
        """Of the leaves of each tree."""
        every = settings.logging.samples_every
        self.shown = SHOWN_TREES if every and number % every == 0 else 0
        """First trees whose pictures are kept to be looked at."""
        self.media: dict[int, list[Any]] = {}
        self._may_leave_out = settings.rollout.trees_to_leave_out(len(prompts))
        self.left_out: set[int] = set()
        """Trees that a reward gave no score."""
        self.forwards: dict[tuple[int, ...], list[tuple[float, int]]] = {}
        """By the trees of a task, its forward passes: when each ended, and its rows."""
        self.task_seconds: dict[tuple[int, ...], float] = {}
        """By the trees of a task, what sampling them took, without the time for which scoring held it up."""
        self.first_score_time = float("inf")
        self.leaves_scored = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._trees: list[asyncio.Future[RemoteTree[Any]]] = [
            asyncio.get_running_loop().create_future() for _ in prompts
        ]

    def growing(self, task: Task) -> dict[int, GrowingTree]:
        """Those trees of a task that aren't complete yet, as they are before anything has arrived."""
        pairs = zip(task.trees, task.prompts, strict=True)
        return {n: GrowingTree(n, prompt, self.schedule) for n, prompt in pairs if not self._trees[n].done()}

    def completed(self, tree: GrowingTree) -> None:
        """Hand a tree over to whoever waits for it."""
        if not self._trees[tree.number].done():
            self.rewards[tree.number] = tree.rewards
            self.diversity[tree.number] = tree.diversity
            if tree.media:
                self.media[tree.number] = tree.media
            self._trees[tree.number].set_result(
                RemoteTree(tree.number, tree.prompt, tree.schedule, tree.parts, tree.rewards)
            )
            metrics.QUEUE_LENGTH.labels("trees").inc()

    def leave_out(self, number: int, error: BaseException) -> bool:
        """Go on without a tree that has no score. Returns False if too many would be left out."""
        if len(self.left_out | {number}) > self._may_leave_out:
            return False
        if number not in self.left_out:
            logging.getLogger(__name__).warning("tree %d of iteration %d is left out: %s", number, self.number, error)
            metrics.LEFT_OUT.inc()
            self.left_out.add(number)
            empty: RemoteTree[Any] = RemoteTree(number, self.prompts[number], self.schedule, (), {}, left_out=True)
            self._trees[number].set_result(empty)
            metrics.QUEUE_LENGTH.labels("trees").inc()
        return True

    def scored(self) -> list[dict[str, FloatArray]]:
        """Rewards of the leaves, tree by tree, of those that have any."""
        return [rewards for number, rewards in enumerate(self.rewards) if number not in self.left_out]

    def fail(self, error: BaseException) -> None:
        """Have everybody who waits for a tree get `error`."""
        if not self.failed.done():
            self.failed.set_exception(error)

    async def ready(self, number: int) -> None:
        """Wait until tree `number` is sampled and scored. Raises what has made the iteration fail."""
        either: list[asyncio.Future[Any]] = [self._trees[number], self.failed]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            self.failed.result()

    def hand_over(self, number: int) -> RemoteTree[Any]:
        """A tree that is ready; its references are forgotten here."""
        tree = self._trees[number].result()
        self._trees[number] = asyncio.get_running_loop().create_future()
        self._trees[number].set_result(RemoteTree(number, tree.prompt, tree.schedule, (), {}))
        metrics.QUEUE_LENGTH.labels("trees").dec()
        return tree

    def every_forward(self) -> Iterator[tuple[float, int]]:
        """All forward passes, each once, though a task may have been sampled twice."""
        return chain.from_iterable(self.forwards.values())

    def observed(self, workers: int, seconds: float) -> IterationTiming:
        """What this iteration of so many `seconds` tells of its `workers`."""
        waited = self.timeline.seconds("waiting") * self.timeline.hidden("waiting", behind="rollout")
        task_seconds = float(np.mean(list(self.task_seconds.values())))
        return IterationTiming(workers, len(self.tasks), task_seconds, seconds, waited)

    def first_score_share(self) -> float:
        """Share of the forward passes that had ended when the first leaf was scored."""
        total = sum(rows for _, rows in self.every_forward())
        done = sum(rows for ended, rows in self.every_forward() if ended <= self.first_score_time)
        return done / total if total else 1.0


async def parts_of(stream: Any) -> AsyncIterator[tuple[PartHeader, Any, Any]]:
    """The parts that a worker's generator gives: header, reference to pictures, reference to states.

    The header is the last of the three, so that a part that is handed on is whole. Raises what broke the stream off.
    """
    objects = []
    async for reference in stream:
        objects.append(reference)
        if len(objects) == 3:
            yield await objects[2], objects[0], objects[1]
            objects = []
    for reference in objects:
        await reference
