"""The trees of one iteration, from the tasks that sample them to the scores that complete them.

Every tree is handed over once, whole and scored or left out, however often it was sampled. The first error of a task
ends the others and the iteration.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from prometheus_client import Counter

from ...proto.learned_tree import LearnedTree
from ...proto.remote_tree import PartHeader, RemoteTree
from ...proto.schedule import Schedule
from ...proto.scoring import ScoreReply
from ...proto.settings import RunSettings
from ...proto.tree import FloatArray, Task, Thumbnail, Window, fill_scores
from ...proto.update_stats import UpdateStats
from ...proto.usage import NOTHING, Usage
from ..run.cuts import training_tasks
from ..run.phases import Timeline
from ..run.planner import Plan
from ..run.tree_record import TreeRecord, tree_record
from . import metrics
from .autoscaling import IterationTiming
from .messages import PublishedWeights
from .part_reader import ArrivedPart


@dataclass
class GrowingTree:
    """A tree that is being sampled and scored: headers and references of the parts that have arrived, and scores."""

    number: int
    prompt: str
    schedule: Schedule
    parts: list[tuple[PartHeader, Any]] = field(default_factory=list)
    media: list[Any] = field(default_factory=list)
    """References to pictures that are kept as samples."""
    thumbnails: dict[int, Thumbnail] = field(default_factory=dict)
    """Those of its nodes, which the learner doesn't get."""
    rewards: dict[str, FloatArray] = field(default_factory=dict)
    diversity: float | None = None
    nodes: int = 0
    leaves: int = 0
    """Leaves that have all their scores."""

    def add(self, part: ArrivedPart, *, shown: bool) -> None:
        """Take in a part that has arrived; with `shown` its pictures are kept as samples."""
        header = part.header
        self.thumbnails.update(header.thumbnails)
        self.parts.append((replace(header, thumbnails={}), part.states))
        if shown:
            self.media.append(part.media)
        self.nodes += len(header.nodes)
        if header.diversity is not None:
            self.diversity = header.diversity

    def add_scores(self, header: PartHeader, reply: ScoreReply) -> None:
        """Take in the scores of a part's leaves. Raises as `fill_scores` does."""
        fill_scores(self.rewards, self.schedule, header.leaves, reply.scores, f"tree {self.number} ('{self.prompt}')")
        self.leaves += len(header.leaves)

    @property
    def logprobs(self) -> FloatArray:
        """Log-probability of the edge into every node, float64 [nodes]; NaN where it hasn't arrived."""
        logprobs = np.full(self.schedule.nodes, np.nan)
        for header, _ in self.parts:
            logprobs[header.nodes] = header.logprobs
        return logprobs

    @property
    def complete(self) -> bool:
        """Whether all nodes have arrived, and all leaves have their scores."""
        return self.nodes == self.schedule.nodes and self.leaves == self.schedule.leaves


class Iteration:
    """The trees of one iteration while they are sampled and scored."""

    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        weights: PublishedWeights,
        sample: Callable[["Iteration", Task], Coroutine[Any, Any, None]],
    ) -> None:
        """`sample` is started for all tasks at once."""
        self.plan, self.weights = plan, weights
        self.number, self.prompts, self.schedule = number, prompts, schedule = plan.number, plan.prompts, plan.schedule
        self.tasks = training_tasks(settings, number, prompts, schedule, weights.version)
        self.timeline = Timeline()
        self.counted: dict[Counter, float] = {}
        """Seconds of this iteration that are already in the counters."""
        self.rewards: list[dict[str, FloatArray]] = [{} for _ in prompts]
        self.diversity: dict[int, float] = {}
        """Diversity of the leaves of those trees that are decoded, by number."""
        self.shown = settings.logging.shown_trees(number)
        """Number of first trees whose pictures are kept as samples."""
        self.media: dict[int, list[Any]] = {}
        self._recorded = settings.logging.recorded_trees(number)
        self._objective = settings.learner.objective
        self._colocated = settings.placement == "colocated"
        self._records: dict[int, Callable[[LearnedTree], TreeRecord]] = {}
        """Number of a recorded tree -> what makes its record, when it has been learned from."""
        self._may_leave_out = settings.rollout.trees_to_leave_out(len(prompts))
        self.left_out: set[int] = set()
        """Numbers of the trees that are skipped because a reward failed."""
        self.task_seconds: dict[tuple[int, ...], float] = {}
        """Trees of a task -> the seconds of sampling them, without the time for which scoring held it up."""
        self.leaves_scored = 0
        self.usage: dict[str, Usage] = {}
        """Phase -> what its processes have spent, also on tasks that were rerun."""
        self.reward_usage: dict[str, Usage] = {}
        """Reward model -> its part of what scoring has cost."""
        self._trees: dict[int, asyncio.Future[RemoteTree[Any]]] = {
            number: asyncio.get_running_loop().create_future() for number in range(len(prompts))
        }
        """The trees that haven't been handed over: done as soon as they are sampled and scored."""
        self.sampling = asyncio.create_task(self._sample(sample))
        # An error is raised by `sampled`; where nobody asks for it, the run has ended over another one.
        self.sampling.add_done_callback(lambda sampling: sampling.cancelled() or sampling.exception())

    async def sampled(self) -> None:
        """Wait until all tasks are done. If one fails, the others are cancelled, and its error is raised."""
        await self.sampling

    async def _sample(self, sample: Callable[["Iteration", Task], Coroutine[Any, Any, None]]) -> None:
        async with task_group() as group:
            for task in self.tasks:
                group.create_task(sample(self, task))

    def spent(self, phase: str, usage: Usage) -> None:
        """Note what a process has spent on a phase."""
        self.usage[phase] = self.usage.get(phase, NOTHING) + usage

    def scored_by(self, reply: ScoreReply) -> None:
        """Note what reward models have spent on a reply."""
        self.spent("scoring", reply.usage)
        for model, usage in reply.usage_by_model.items():
            self.reward_usage[model] = self.reward_usage.get(model, NOTHING) + usage

    def growing(self, task: Task) -> dict[int, GrowingTree]:
        """The incomplete trees of a task by number, each empty, as before its first part."""
        pairs = zip(task.trees, task.prompts, strict=True)
        return {n: GrowingTree(n, prompt, self.schedule) for n, prompt in pairs if self._awaited(n)}

    def completed(self, tree: GrowingTree) -> None:
        """Mark a tree as complete, which wakes those who wait for it."""
        if self._awaited(tree.number):
            self.rewards[tree.number] = tree.rewards
            if tree.diversity is not None:
                self.diversity[tree.number] = tree.diversity
            if tree.media:
                self.media[tree.number] = tree.media
            if tree.number < self._recorded:
                sampled = tree.prompt, tree.schedule, tree.logprobs, tree.rewards, tree.thumbnails
                self._records[tree.number] = partial(tree_record, self.number, self._objective, *sampled)
            self._finish(RemoteTree(tree.number, tree.prompt, tree.schedule, tree.parts, tree.rewards))

    def leave_out(self, number: int, error: BaseException) -> bool:
        """Continue without a tree that has no score. Returns False if too many trees would be skipped."""
        if len(self.left_out | {number}) > self._may_leave_out:
            return False
        if number not in self.left_out:
            logging.getLogger(__name__).warning("tree %d of iteration %d is left out: %s", number, self.number, error)
            metrics.LEFT_OUT.inc()
            self.left_out.add(number)
            self._finish(RemoteTree(number, self.prompts[number], self.schedule, (), {}, left_out=True))
        return True

    def scored(self) -> dict[int, dict[str, FloatArray]]:
        """The rewards of the leaves of each tree by its number, without the skipped trees."""
        return {number: rewards for number, rewards in enumerate(self.rewards) if number not in self.left_out}

    def samples(self) -> list[tuple[int, str, dict[str, FloatArray], list[Any]]]:
        """Number, prompt, rewards and references to the parts' pictures, for each tree whose pictures are kept."""
        return [(n, self.prompts[n], self.rewards[n], self.media[n]) for n in sorted(self.media)]

    def records(self, updates: Iterable[UpdateStats]) -> list[TreeRecord]:
        """The recorded trees, once all updates have been made."""
        return [self._records[tree.number](tree) for update in updates for tree in update.recorded]

    async def ready(self, window: Window[int]) -> None:
        """Wait until a window may be learned from: until its trees are sampled and scored, or left out."""
        # Where learner and workers are one, learning waits until all is sampled: nobody is held up half-way.
        until = len(self.prompts) if self._colocated else window.trees[-1] + 1
        numbers = (number for number in range(window.trees[0], until) if number in self._trees)  # not handed over
        if awaited := [self._trees[number] for number in numbers]:
            await asyncio.wait(awaited)  # whoever stops waiting leaves them to others

    def hand_over(self, number: int) -> RemoteTree[Any]:
        """Return a tree that is ready, and release it here."""
        metrics.QUEUE_LENGTH.labels("trees").dec()
        return self._trees.pop(number).result()

    def _awaited(self, number: int) -> bool:
        return number in self._trees and not self._trees[number].done()

    def _finish(self, tree: RemoteTree[Any]) -> None:
        self._trees[tree.number].set_result(tree)
        metrics.QUEUE_LENGTH.labels("trees").inc()

    @property
    def held_up_seconds(self) -> float:
        """Seconds in which workers with a task computed nothing, for too much waited for scores, added up over workers;
        once all is sampled."""
        tasks = sum(end - start for start, end in self.timeline.spans.get("rollout", ()))
        computed = self.usage["rollout"].seconds if "rollout" in self.usage else 0.0
        # While this process waits to have a part scored, the worker may compute the next ones.
        return max(0.0, tasks - max(computed, sum(self.task_seconds.values())))

    def observed(self, workers: int, seconds: float) -> IterationTiming:
        """How this iteration, of `seconds`, used its `workers`."""
        waited = self.timeline.seconds("waiting") * self.timeline.hidden("waiting", behind="rollout")
        task_seconds = float(np.mean(list(self.task_seconds.values())))
        return IterationTiming(workers, len(self.tasks), task_seconds, seconds, waited)


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup that raises the first error itself, not a group of errors."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__
