"""The controller of a run on Ray: an actor with the loop of an iteration.

Tasks go to whichever worker is free, scores come in any order, and workers come and go. What the learner sees depends
on none of it: windows of consecutive trees, each a pure function of its task. Pictures and states pass by as
references; the controller itself holds headers and scores.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError

from ...proto.checkpoint_files import PREVIOUS
from ...proto.errors import ProcessLost, brief
from ...proto.exporter import ExporterDirectory
from ...proto.logs import mark_warnings
from ...proto.profiling import Component, ProfileOrder, ProfileRequest
from ...proto.remote_tree import part_id
from ...proto.settings import RunSettings
from ...proto.tracing import span, start_tracing
from ...proto.tree import FloatArray, Task, Window
from ...proto.update_stats import UpdateStats
from ...proto.usage import Usage
from ..plan.utilisation import PhaseFlops
from ..run.cuts import windows
from ..run.evaluation import evaluation_tasks, means_of, repeats
from ..run.loop import IterationReport
from ..run.planner import Planner
from . import metrics
from .iteration import GrowingTree, Iteration, task_group
from .messages import ControllerState, PublishedWeights, Sizes
from .part_reader import ArrivedPart, read_parts
from .pools import Pools
from .profiling import AwaitedProfiling
from .reward_client import ScoringFailed
from .room import Room
from .status_server import serve_http
from .watch import Watch, phase_seconds
from .worker_pool import TASK_ATTEMPTS, Worker


class Controller:
    """Directs the pools of one run."""

    def __init__(self, settings: RunSettings, prompts: Sequence[str], name: str, namespace: str, sizes: Sizes) -> None:
        """`prompts` are those to train on, `name` and `namespace` this actor's own; `sizes` is what was scaled before
        the run was set up again."""
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self.settings = settings
        self.exporters = ExporterDirectory(settings.name)
        self.planner = Planner(settings, prompts)
        self.pools = Pools(settings, (name, namespace), self.exporters, sizes)
        self.published: deque[PublishedWeights] = deque(maxlen=2)
        self.watch = Watch(settings, self.pools, self.exporters)
        self.profiling = AwaitedProfiling(settings)
        self.flops = PhaseFlops(settings, {})
        self._ahead: Iteration | None = None
        self._room = Room(settings.max_trees_ahead)
        self._in_scoring = asyncio.Semaphore(settings.rollout.max_parts_in_scoring)

    # The loop ---------------------------------------------------------------------------------------------------

    async def iterate(
        self, number: int
    ) -> tuple[IterationReport, list[tuple[int, str, dict[str, FloatArray], list[Any]]]]:
        """Sample, score, learn, publish. With `staleness: 1` the sampling of the next iteration starts meanwhile.

        Returns the report, without samples, and of each tree whose pictures are kept its number, its prompt, its
        rewards, and references to the pictures of its parts.
        """
        start, cpu, workers = time.perf_counter(), time.process_time(), len(self.pools.workers.workers)
        with span("iteration", iteration=number, processes=self.exporters.processes()):
            iteration, updates = await self._iterate(number)
        seconds = time.perf_counter() - start
        await self._counting
        iteration.spent("controller", Usage(seconds, time.process_time() - cpu))
        if workers:  # with none, as while new ones start after a node has gone, nothing follows from the seconds
            self.pools.adapt(iteration.observed(workers, seconds))
        self.profiling.iteration_ended(number)
        return self._report(iteration, updates, seconds), iteration.samples()

    async def _iterate(self, number: int) -> tuple[Iteration, list[UpdateStats]]:
        # A resumed run samples first with the weights that it would have had if it had sampled ahead.
        weights = self.published[0 if self.settings.staleness else -1]
        iteration = self._ahead or self._sample(number, weights)
        self._ahead = None
        if self.settings.staleness and number < self.settings.iterations:
            self._ahead = self._sample(number + 1, self.published[-1])
        async with task_group() as group:  # what breaks sampling off ends the wait for it too
            group.create_task(iteration.sampled())
            updates = await self._learn(iteration)
        self.planner.record(iteration.plan, iteration.scored())
        with iteration.timeline.phase("publishing", iteration=number):
            version, usage = await self.pools.learner.publish(self.pools.relays())
            self.published.append(version)
            iteration.spent("publishing", usage)
        return iteration, updates

    def _sample(self, number: int, weights: PublishedWeights) -> Iteration:
        """Start all tasks of an iteration. They wait for the learner, for a free worker and for their turn."""
        iteration = Iteration(self.planner.plan(number), self.settings, weights, self._sample_task)
        self.watch.iterations.append(iteration)
        return iteration

    async def _sample_task(self, iteration: Iteration, task: Task) -> None:
        """Have a task sampled and its parts scored. If pictures are lost with their node, the task is rerun."""
        await self._room.take(len(task.trees))
        for _ in range(TASK_ATTEMPTS):
            lost: list[ObjectLostError] = []
            async with task_group() as scoring:
                work = partial(self._sample_once, iteration, task, scoring, lost)
                await self.pools.run(task, iteration.weights, work)
            if not lost:
                return
            logging.getLogger(__name__).warning(
                "pictures were lost with their node, trees %s again: %s", task.trees, brief(lost[0])
            )
        raise ProcessLost(f"the pictures of trees {task.trees} were lost {TASK_ATTEMPTS} times, with their nodes")

    async def _sample_once(
        self,
        iteration: Iteration,
        task: Task,
        scoring: asyncio.TaskGroup,
        lost: list[ObjectLostError],
        worker: Worker,
    ) -> None:
        """One worker's attempt at a task: every part is scored, in `scoring`, as soon as it is there.

        The worker is free when all parts are there. Pictures that are lost before they are scored are noted in `lost`.
        """
        trees, attempts = iteration.growing(task), []
        lost.clear()  # what was lost of an earlier worker's attempt is sampled now
        start, held_up = time.monotonic(), 0.0
        try:
            with iteration.timeline.phase("rollout", iteration=iteration.number, trees=task.trees):
                first = worker is self.pools.workers.workers[0]
                order = self.profiling.order(Component.ROLLOUT, iteration.number, first=first)
                async for part in read_parts(worker, task, iteration.weights, self.published[-1].version, order):
                    iteration.spent("rollout", part.header.usage)
                    if tree := trees.get(part.header.tree):
                        tree.add(part, shown=tree.number < iteration.shown)
                        asked, begun = time.monotonic(), asyncio.Event()
                        attempts.append(scoring.create_task(self._score(iteration, tree, part, begun, lost)))
                        await begun.wait()  # while too much waits for scores, the worker pauses
                        held_up += time.monotonic() - asked
        except BaseException:  # another worker begins anew
            for attempt in attempts:
                attempt.cancel()
            raise
        iteration.task_seconds[task.trees] = time.monotonic() - start - held_up

    async def _score(
        self,
        iteration: Iteration,
        tree: GrowingTree,
        part: ArrivedPart,
        begun: asyncio.Event,
        lost: list[ObjectLostError],
    ) -> None:
        """Have a part scored when its turn comes; `begun` is set at that moment."""
        header, name = part.header, part_id(iteration.number, tree.number, part.header.leaves)
        prompts, rewards = [tree.prompt] * len(header.leaves), list(self.settings.training_rewards)
        async with self._in_scoring:
            begun.set()
            waiting = metrics.QUEUE_LENGTH.labels("parts")
            with iteration.timeline.phase("scoring", part=name), waiting.track_inprogress():
                try:
                    request = f"{self.settings.name}/{name}"
                    order = self.profiling.order(Component.REWARD, iteration.number)
                    reply = await self.pools.rewards.score(part.media, prompts, rewards, request, order)
                except ObjectLostError as error:
                    lost.append(error)
                    return
                except ScoringFailed as error:
                    if iteration.leave_out(tree.number, error):
                        return
                    raise
        iteration.scored_by(reply)
        tree.add_scores(header, reply)
        metrics.LEAVES_SCORED.inc(len(header.leaves))
        iteration.leaves_scored += len(header.leaves)
        # A task that runs again is scored again.
        share = iteration.leaves_scored / (len(iteration.prompts) * tree.schedule.leaves)
        self.watch.progress = ("rollout", min(share, 1.0))
        if tree.complete:
            iteration.completed(tree)

    async def _learn(self, iteration: Iteration) -> list[UpdateStats]:
        """Give the learner windows of consecutive trees as soon as these are scored. Returns the updates' figures.

        While it works on one, it fetches the states of the next, if that is scored.
        """
        cut, updates, given = list(windows(self.settings, iteration.number)), [], None
        for window, following in zip(cut, [*cut[1:], None], strict=True):
            begin, end = window.trees[0], window.trees[-1] + 1
            with iteration.timeline.phase("waiting", iteration=iteration.number, trees=[begin, end]):
                await iteration.ready(window)
            given = given or self.pools.learner.give(window.of(iteration.hand_over))
            async with task_group() as group:
                ahead = group.create_task(self._fetch_ahead(iteration, following)) if following else None
                with iteration.timeline.phase("learning", iteration=iteration.number, trees=[begin, end]):
                    order = self.profiling.order(Component.LEARNER, iteration.number)
                    stats, usage = await self.pools.learner.accumulate(given, order)
                given = ahead.result() if ahead and ahead.done() else None
                if ahead:
                    ahead.cancel()
            iteration.spent("learning", usage)
            updates += [stats] if stats else []
            await self._room.free(end - begin)
            self.watch.progress = ("learning", end / len(iteration.prompts))
        return updates

    async def _fetch_ahead(self, iteration: Iteration, window: Window[int]) -> Any:
        """Have the learner fetch the states of a window as soon as it is scored. Returns what the learner takes."""
        await iteration.ready(window)
        return self.pools.learner.fetch_ahead(window.of(iteration.hand_over))

    def _report(self, iteration: Iteration, updates: list[UpdateStats], seconds: float) -> IterationReport:
        names, timeline = list(self.settings.training_rewards), iteration.timeline
        scored = iteration.scored().values()
        report = IterationReport(
            iteration=iteration.number,
            rewards={name: np.concatenate([rewards[name] for rewards in scored]) for name in names},
            seconds=phase_seconds(timeline),
            usage=iteration.usage,
            reward_usage=iteration.reward_usage,
            forward_passes=len(iteration.prompts) * iteration.schedule.forward_passes,
            updates=updates,
            trees=iteration.records(updates),
            left_out=len(iteration.left_out),
            diversity=float(np.mean(list(iteration.diversity.values()))) if iteration.diversity else None,
            scoring_hidden=timeline.hidden("scoring", behind="rollout"),
            learner_draining=self.watch.learner_draining,
        )
        self.flops.complete(report)
        self.watch.done(iteration)
        metrics.note_iteration(report, self.settings.rewards, seconds, self.published[-1].version)
        return report

    # Around the loop --------------------------------------------------------------------------------------------

    async def start(self, recoveries: int, port: int) -> str:
        """Launch all processes and wait until they are ready. Returns `host:port` of this actor's HTTP server.

        `recoveries` is how often the run has been set up again; `port` is where to listen.
        """
        mark_warnings()
        start_tracing(self.settings.trace_folder, "controller", "controller", several_at_once=True)
        log, node = self.settings.logging, ray.util.get_node_ip_address()
        serving = serve_http(self.status, self.exporters, log.metrics_host, node, port, metrics.REGISTRY)
        address, self._server = await serving
        metrics.RECOVERIES.set(recoveries)
        metrics.LAST_PROGRESS.set_to_current_time()
        self._watching = asyncio.create_task(self.watch.every_second())
        await self.pools.start()
        self.published.append(await self.pools.learner.weights(self.pools.relays()))
        self._counting = asyncio.create_task(self._count_flops())
        self.watch.progress = ("ready", 0.0)
        return address

    async def _count_flops(self) -> None:
        """Have the learner count the operations of a row, while it waits for the first trees."""
        self.flops = PhaseFlops(self.settings, await self.pools.learner.kinds_of_work())
        metrics.note_work(self.flops.kinds)

    async def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts among `prompts` that the policy cuts because they are too long."""
        return await self.pools.learner.cut_prompts(prompts)

    async def evaluate(self, prompts: Sequence[str]) -> tuple[dict[str, FloatArray], list[Any]]:
        """The scores, by reward, of pictures that are sampled with the newest weights, and references to the pictures,
        task by task."""
        weights, names = self.published[-1], list(self.settings.rewards)

        async def one(task: Task) -> tuple[Any, Mapping[str, FloatArray]]:
            media = await self.pools.run(task, weights, partial(self._draw, task, weights))
            request = f"{self.settings.name}/evaluation-{weights.version}/{task.trees[0]}"
            return media, (await self.pools.rewards.score(media, task.prompts, names, request)).scores

        done = await asyncio.gather(*map(one, evaluation_tasks(self.settings, prompts, weights.version)))
        references = [media for media, _ in done]
        rewards = {name: np.concatenate([scores[name] for _, scores in done]) for name in names}
        # Read where they lie, in this node's store, from which the driver reads them too.
        media = [await reference for reference in references] if repeats(prompts) else []
        metrics.note_evaluation(await asyncio.to_thread(means_of, prompts, media, rewards), self.settings.rewards)
        return rewards, references

    async def _draw(self, task: Task, weights: PublishedWeights, worker: Worker) -> Any:
        """A reference to the pictures of an evaluation's task."""
        stream = worker.actor.draw.options(num_returns="streaming").remote(task, weights.at(worker.info.node_id))
        objects = [reference async for reference in stream]
        await objects[-1]  # raises what went wrong in the worker
        return objects[0]

    async def save(self, folder: Path) -> None:
        """Write a checkpoint into `folder`."""
        sampled_with = self.published[0].own if self.settings.staleness else None
        await self.pools.learner.save(folder, sampled_with)
        self.planner.save(folder)

    async def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        await self.pools.learner.load(folder)
        self.planner.load(folder)
        self.published.clear()
        if self.settings.staleness and (folder / PREVIOUS).is_file():  # else none was needed when it was made
            self.published.append(await self.pools.learner.previous(self.pools.relays(), folder))
        self.published.append(await self.pools.learner.weights(self.pools.relays()))
        self.watch.iterations_done = self.published[-1].version  # each iteration has made a version

    async def export(self, folder: Path) -> None:
        """Write the trained weights into `folder` in diffusers' format."""
        await self.pools.learner.export(folder)

    async def scale(self, rollout_workers: int | None, rewards: dict[str, int]) -> int:
        """Change the size of pools; returns how many processes wait for room. Raises InputError for one that can't be
        changed."""
        return await self.pools.scale(rollout_workers, rewards)

    async def profile(self, request: ProfileRequest) -> ProfileOrder:
        """Have torch profile processes in the next iterations that begin; returns when they are over.

        Raises InputError if there are none left, or others are being profiled.
        """
        return await self.profiling.profiled(self.watch.newest, request)

    async def close(self) -> None:
        """End all processes of the run except its reward models."""
        for iteration in self.watch.iterations:
            iteration.sampling.cancel()
        await self.pools.close()

    # For those who watch ----------------------------------------------------------------------------------------

    def register(self, address: str, component: str, pool: str) -> None:
        """Record that a metrics exporter is alive."""
        self.exporters.register(address, component, pool)

    async def state_now(self) -> ControllerState:
        """The current phase, the fraction of it that is done, and the sizes that pools were scaled to."""
        return self.watch.state()

    async def status(self) -> dict[str, Any]:
        """Finished iterations, the current phase, and every process, as plain data."""
        version = self.published[-1].version if self.published else 0
        return await self.watch.status(version, self._room.taken)
