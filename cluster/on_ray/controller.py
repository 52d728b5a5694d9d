"""The controller of a run on Ray: an actor with the loop of an iteration.

Tasks go to whichever worker is free, scores come in any order, and workers come and go. What the learner sees depends
on none of it: windows of consecutive trees, each a pure function of its task. Pictures and states pass by as
references; the controller itself holds headers and scores.
"""

import asyncio
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import ObjectLostError

from ...proto.errors import ProcessLost, brief
from ...proto.exporter import ExporterDirectory
from ...proto.logs import mark_warnings
from ...proto.remote_tree import PartHeader, part_id
from ...proto.settings import RunSettings
from ...proto.tracing import span, start_tracing
from ...proto.tree import Task
from ...proto.update_stats import UpdateStats
from ..observability import metrics
from ..run.adaptive_splits import SplitChooser
from ..run.cuts import MAX_UNREAD_PARTS, windows
from ..run.evaluation import evaluation_tasks
from ..run.loop import IterationReport
from ..run.phases import Timeline
from ..run.prompt_order import prompts_of
from .actors import PREVIOUS
from .iteration import GrowingTree, Iteration, parts_of
from .messages import ControllerState, Sizes, WeightsRef
from .pools import Pools
from .reward_client import ScoringFailed
from .status_server import serve_http
from .worker_pool import ATTEMPTS, Worker

Scores = dict[str, npt.NDArray[np.float64]]


class Controller:
    """Directs the pools of one run."""

    def __init__(self, settings: RunSettings, prompts: Sequence[str], name: str, namespace: str, sizes: Sizes) -> None:
        """`prompts` are those to train on, `name` and `namespace` this actor's own; `sizes` is what was scaled before
        the run was set up again."""
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self.settings, self._prompts = settings, prompts
        self.exporters = ExporterDirectory(settings.name)
        self.branching = SplitChooser(settings)
        self.pools = Pools(settings, (name, namespace), self.exporters, sizes)
        self.published: deque[WeightsRef] = deque(maxlen=2)
        self._ahead: Iteration | None = None
        self._going_on: list[Iteration] = []
        self._in_flight = 0
        self._learned = asyncio.Condition()
        self._in_scoring = asyncio.Semaphore(settings.rollout.max_parts_in_scoring)
        self._background: set[asyncio.Task[None]] = set()
        self.server: asyncio.Task[None] | None = None
        self.progress = ("starting", 0.0)
        self.iterations_done = 0
        self._learner_draining = False

    # The loop ---------------------------------------------------------------------------------------------------

    async def iterate(self, number: int) -> tuple[IterationReport, list[list[Any]]]:
        """Sample, score, learn, publish. With `staleness: 1` the sampling of the next iteration starts meanwhile.

        Returns the report, without pictures, and references to the parts of each tree's.
        """
        start = time.perf_counter()
        with span("iteration", iteration=number, processes=self.exporters.processes()):
            iteration, updates = await self._iterate(number)
        seconds = time.perf_counter() - start
        self.pools.adapt(iteration.observed(len(self.pools.workers.workers), seconds))
        return self._report(iteration, updates, seconds), [iteration.media[tree] for tree in sorted(iteration.media)]

    async def _iterate(self, number: int) -> tuple[Iteration, list[UpdateStats]]:
        # What a resumed run samples first gets the weights that it would have had if it had been sampled ahead.
        weights = self.published[0 if self.settings.staleness else -1]
        iteration = self._ahead or self._sample(number, weights)
        self._ahead = None
        if self.settings.staleness and number < self.settings.iterations:
            self._ahead = self._sample(number + 1, self.published[-1])
        updates = await self._learn(iteration)
        self.branching.record(number, iteration.schedule, iteration.scored())
        with iteration.timeline.phase("publishing", iteration=number):
            self.published.append(await self.pools.learner.publish())
        return iteration, updates

    def _sample(self, number: int, weights: WeightsRef) -> Iteration:
        """Start all tasks of an iteration; they wait for the learner, for workers and for their turn."""
        prompts = prompts_of(number, self._prompts, self.settings.prompts.per_iteration, self.settings.seed)
        iteration = Iteration(number, prompts, self.settings, self.branching.schedule(number), weights)
        self._going_on.append(iteration)
        for task in iteration.tasks:
            self._start(self._sample_task(iteration, task), iteration.fail)
        return iteration

    async def _sample_task(self, iteration: Iteration, task: Task) -> None:
        await self._room_for(len(task.trees))
        for _ in range(ATTEMPTS):
            # What is lost here is the weights, with the learner's node; or it isn't known what.
            scoring = await self.pools.workers.run(partial(self._stream, iteration, task))
            try:
                await asyncio.gather(*scoring)
                return
            except ObjectLostError as error:
                logging.getLogger(__name__).warning(
                    "pictures were lost with their node, trees %s again: %s", task.trees, brief(error)
                )
        raise ProcessLost(f"the pictures of trees {task.trees} were lost {ATTEMPTS} times, with the nodes they were on")

    async def _stream(self, iteration: Iteration, task: Task, worker: Worker) -> list[asyncio.Task[None]]:
        """One worker's attempt at a task: every part goes to the rewards as soon as it is there.

        Returns what scores the parts, and goes on.
        """
        trees: dict[int, GrowingTree] = iteration.growing(task)
        scoring: list[asyncio.Task[None]] = []
        forwards: list[tuple[float, int]] = []
        start, held_up = time.monotonic(), 0.0
        stream = worker.actor.sample.options(
            num_returns="streaming", _generator_backpressure_num_objects=3 * MAX_UNREAD_PARTS
        ).remote(task, iteration.weights, self.published[-1].version)
        try:
            with iteration.timeline.phase("rollout", iteration=iteration.number, trees=task.trees):
                async for header, media, states in parts_of(stream):
                    forwards += header.forwards
                    if tree := trees.get(header.tree):
                        tree.add(header, states)
                        if tree.number < iteration.shown:
                            tree.media.append(media)
                        asked = time.monotonic()
                        await self._in_scoring.acquire()  # while too much waits for scores, the worker pauses
                        held_up += time.monotonic() - asked
                        scoring.append(self._start(self._score(iteration, tree, header, media), lambda _: None))
                        # Not in `_score`: one that is cancelled before it has begun would never give it back.
                        scoring[-1].add_done_callback(lambda _: self._in_scoring.release())
        except BaseException:
            for attempt in scoring:
                attempt.cancel()
            raise
        iteration.task_seconds[task.trees] = time.monotonic() - start - held_up
        iteration.forwards[task.trees] = forwards
        return scoring

    async def _score(self, iteration: Iteration, tree: GrowingTree, header: PartHeader, media: Any) -> None:
        part = part_id(iteration.number, tree.number, header.leaves)
        request = f"{self.settings.name}/{part}"
        with iteration.timeline.phase("scoring", part=part), metrics.QUEUE_LENGTH.labels("parts").track_inprogress():
            prompts = [tree.prompt] * len(header.leaves)
            try:
                reply = await self.pools.rewards.score(media, prompts, list(self.settings.training_rewards), request)
            except ScoringFailed as error:
                if iteration.leave_out(tree.number, error):
                    return
                raise
        iteration.first_score_time = min(iteration.first_score_time, time.time())
        tree.add_scores(header, reply)
        metrics.LEAVES_SCORED.inc(len(header.leaves))
        iteration.leaves_scored += len(header.leaves)
        # A task that runs again is scored again.
        share = iteration.leaves_scored / (len(iteration.prompts) * tree.schedule.leaves)
        self.progress = ("rollout", min(share, 1.0))
        if tree.complete:
            iteration.completed(tree)

    async def _learn(self, iteration: Iteration) -> list[UpdateStats]:
        """Take up windows of consecutive trees as soon as they are scored, and make the updates."""
        trees, updates = len(iteration.prompts), []
        for window in windows(self.settings, iteration.number):
            begin, end = window.trees[0], window.trees[-1] + 1
            with iteration.timeline.phase("waiting", iteration=iteration.number, trees=[begin, end]):
                # Where learner and workers are one, learning waits until all is sampled: nobody is held up half-way.
                needed = trees if self.settings.placement == "colocated" else end
                await asyncio.gather(*(iteration.ready(number) for number in range(begin, needed)))
            with iteration.timeline.phase("learning", iteration=iteration.number, trees=[begin, end]):
                stats = await self.pools.learner.accumulate(window.of(iteration.hand_over))
            updates += [stats] if stats else []
            await self._make_room(end - begin)
            self.progress = ("learning", end / trees)
        return updates

    async def _room_for(self, trees: int) -> None:
        """Wait until so many more trees may be sampled ahead of the learner."""
        with metrics.QUEUE_LENGTH.labels("tasks").track_inprogress():
            async with self._learned:
                await self._learned.wait_for(lambda: self._in_flight + trees <= self.settings.max_trees_ahead)
                self._in_flight += trees

    async def _make_room(self, trees: int) -> None:
        async with self._learned:
            self._in_flight -= trees
            self._learned.notify_all()

    def _start(self, work: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]) -> asyncio.Task[None]:
        """Run `work` in the background; `failed` is told what it raises."""
        task = asyncio.create_task(work)

        def note(done: asyncio.Task[None]) -> None:
            self._background.discard(done)
            if not done.cancelled() and (error := done.exception()):
                failed(error)

        self._background.add(task)
        task.add_done_callback(note)
        return task

    def _report(self, iteration: Iteration, updates: list[UpdateStats], seconds: float) -> IterationReport:
        names, timeline = list(self.settings.training_rewards), iteration.timeline
        report = IterationReport(
            iteration=iteration.number,
            rewards={name: np.concatenate([rewards[name] for rewards in iteration.scored()]) for name in names},
            seconds=_seconds(timeline),
            forward_passes=sum(rows for _, rows in iteration.every_forward()),
            updates=updates,
            media=[],
            left_out=len(iteration.left_out),
            diversity=float(np.delete(iteration.diversity, list(iteration.left_out)).mean()),
            scoring_hidden=timeline.hidden("scoring", behind="rollout"),
            first_score=iteration.first_score_share(),
            learner_draining=self._learner_draining,
        )
        self.iterations_done = iteration.number
        self._count_seconds(iteration)
        self._going_on.remove(iteration)
        metrics.note_iteration(report, self.settings.rewards, seconds, self.published[-1].version)
        return report

    # Around the loop --------------------------------------------------------------------------------------------

    async def start(self, recoveries: int, port: int) -> str:
        """Launch all processes and wait until they are ready. Returns `host:port` of this actor's HTTP server.

        `recoveries` is how often the run has been set up again; `port` is where to listen.
        """
        mark_warnings()
        start_tracing(self.settings.trace_folder, "controller", "controller")
        log, node = self.settings.logging, ray.util.get_node_ip_address()
        address = await serve_http(self, log.metrics_host, node, port, metrics.REGISTRY)
        metrics.RECOVERIES.set(recoveries)
        metrics.LAST_PROGRESS.set_to_current_time()
        self._watching = asyncio.create_task(self._watch())
        await self.pools.start()
        self.published.append(await self.pools.learner.weights())
        self.progress = ("ready", 0.0)
        return address

    async def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Those of `prompts` of which the policy takes the beginning only."""
        return await self.pools.learner.cut_prompts(prompts)

    async def evaluate(self, prompts: Sequence[str]) -> list[tuple[Any, Scores]]:
        """References to pictures, and their scores, task by task; with the newest weights."""
        weights = self.published[-1]

        async def one(task: Task) -> tuple[Any, Scores]:
            media = await self.pools.workers.run(partial(self._draw, task, weights))
            request = f"{self.settings.name}/evaluation-{weights.version}/{task.trees[0]}"
            reply = await self.pools.rewards.score(media, task.prompts, list(self.settings.rewards), request)
            return media, dict(reply.scores)

        return list(await asyncio.gather(*map(one, evaluation_tasks(self.settings, prompts, weights.version))))

    def note_evaluation(self, means: dict[str, float]) -> None:
        """Export what came of an evaluation."""
        metrics.note_evaluation(means, self.settings.rewards)

    async def _draw(self, task: Task, weights: WeightsRef, worker: Worker) -> Any:
        """Reference to the pictures of an evaluation's task."""
        stream = worker.actor.draw.options(num_returns="streaming").remote(task, weights)
        objects = [reference async for reference in stream]
        await objects[-1]  # raises what went wrong in the worker
        return objects[0]

    async def save(self, folder: Path) -> None:
        """Write a checkpoint into `folder`."""
        sampled_with = self.published[0] if self.settings.staleness else None
        await self.pools.learner.save(folder, sampled_with)
        self.branching.save(folder)

    async def load(self, folder: Path) -> None:
        """Take up a checkpoint."""
        await self.pools.learner.load(folder)
        self.branching.load(folder)
        self.published.clear()
        if self.settings.staleness and (folder / PREVIOUS).is_file():  # else none was needed when it was made
            self.published.append(await self.pools.learner.previous(folder))
        self.published.append(await self.pools.learner.weights())

    async def export(self, folder: Path) -> None:
        await self.pools.learner.export(folder)

    async def scale(self, rollout_workers: int | None, rewards: dict[str, int]) -> int:
        """Change the size of pools; returns how many workers wait for room. Raises InputError for one that can't be
        changed."""
        return await self.pools.scale(rollout_workers, rewards)

    async def close(self) -> None:
        """End all processes of the run but its reward models."""
        for task in list(self._background):
            task.cancel()
        await self.pools.close()

    # For those who watch ----------------------------------------------------------------------------------------

    def register(self, address: str, component: str, pool: str) -> None:
        """Note that a metrics exporter is alive."""
        self.exporters.register(address, component, pool)

    async def _watch(self) -> None:
        """Every second: kill what hangs, leave nodes that are about to go, and have the counters of seconds grow.

        They grow while a phase goes on, not only when it has ended.
        """
        while True:
            self.pools.workers.count_idle()
            self.pools.kill_the_silent(self.exporters.silence)
            try:
                self._learner_draining = self.pools.drain(await asyncio.to_thread(_draining_nodes))
                store, disk = await asyncio.to_thread(_storage_used, self.settings.runs)
            except Exception:  # the GCS may be restarting, the disk be gone: what is counted below goes on
                logging.getLogger(__name__).debug("storage could not be looked at", exc_info=True)
            else:
                metrics.OBJECT_STORE_USED.set(store)
                metrics.DISK_USED.set(disk)
            for iteration in self._going_on:
                self._count_seconds(iteration)
            await asyncio.sleep(1)

    def _count_seconds(self, iteration: Iteration) -> None:
        """Bring the counters of seconds up to now."""
        ranks, seconds = self.settings.pools.learner.count, _seconds(iteration.timeline)
        totals = {metrics.PHASE_SECONDS.labels(name): spent for name, spent in seconds.items()}
        if self.settings.placement == "colocated":  # while others sample, a rank samples too
            for pool in ("learner", "rollout_workers"):
                totals[metrics.IDLE_SECONDS.labels(pool)] = seconds["waiting"] * ranks
        else:
            totals[metrics.IDLE_SECONDS.labels("learner")] = iteration.timeline.seconds("waiting") * ranks
        for counter, total in totals.items():
            if (more := total - iteration.counted.get(counter, 0.0)) > 0:
                counter.inc(more)
                iteration.counted[counter] = total

    async def state_now(self) -> ControllerState:
        """The phase at work, how much of it is done, and what pools were scaled to."""
        return ControllerState(*self.progress, self.pools.sizes)

    async def status(self) -> dict[str, Any]:
        """Iterations done, the phase at work, and every process, as plain data."""
        phase, share = self.progress
        return {
            "run": self.settings.name,
            "pid": os.getpid(),
            "iterations": {"done": self.iterations_done, "of": self.settings.iterations},
            "phase": phase,
            "share": share,
            "weights_version": self.published[-1].version if self.published else 0,
            "max_trees_in_flight": self._in_flight,
            "pools": await self.pools.status(),
        }


def _draining_nodes() -> set[str]:
    """Ids of the nodes that are about to go, and have been told."""
    return set(ray._private.state.state.get_draining_nodes())


def _storage_used(folder: Path) -> tuple[float, float]:
    """Shares in use: of the object store, on the node where it is largest, and of the disk that a folder is on."""
    name, free = "object_store_memory", ray._private.state.available_resources_per_node()
    totals = {node["NodeID"]: node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]}
    shares = [1 - free[node].get(name, 0.0) / total for node, total in totals.items() if total and node in free]
    disk = shutil.disk_usage(folder)
    return max(shares, default=0.0), disk.used / (disk.used + disk.free)


def _seconds(timeline: Timeline) -> dict[str, float]:
    """Seconds of each phase until now. What counts as waiting is what sampling doesn't hide."""
    seconds = {name: timeline.seconds(name) for name in metrics.PHASES}
    seconds["waiting"] = timeline.seconds("waiting", "rollout") - seconds["rollout"]
    return seconds
