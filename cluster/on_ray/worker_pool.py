"""A pool of rollout workers: free workers get work, dead ones are replaced, and the pool grows and shrinks.

Invariant: nothing waits for a worker to start. Requested workers are launched, and join when Ray has found room for
them: at once, or when a node joins the cluster. Until then Ray's autoscaler sees them as demand.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

from ...proto.errors import ProcessLost, RunFailed, brief
from . import metrics
from .internals import dead_among
from .messages import ProcessInfo

Result = TypeVar("Result")
TASK_ATTEMPTS = START_ATTEMPTS = 4
"""Workers that may die over one task, or one after the other while they start, before the run gives up."""


@dataclass
class Worker:
    """One process of a pool."""

    number: int
    actor: Any
    info: ProcessInfo
    busy: bool = False
    draining: bool = False
    """Whether it ends as soon as its current work is done."""
    idle_since: float = field(default_factory=time.monotonic)


class WorkerPool:
    """Runs pieces of work, first come first served, each on one worker at a time."""

    def __init__(
        self,
        name: str,
        launch: Callable[[], Any],
        setup: Callable[[Any], Awaitable[ProcessInfo]],
        replaceable: bool = True,
    ) -> None:
        """`launch` starts an actor, `setup` waits until it is ready. `replaceable`: whether others take the place of
        dead workers. Learner ranks aren't: states would be lost. Their idle time is counted as the learner's."""
        self.name, self._launch, self._setup, self._replaceable = name, launch, setup, replaceable
        self.workers: list[Worker] = []
        self.wanted = 0
        """Number of workers that the pool should have."""
        self._starting: dict[Any, asyncio.Task[None]] = {}
        self._died_starting = 0
        self._free: asyncio.Queue[Worker | None] = asyncio.Queue()
        """Free workers, some of them dismissed meanwhile; None once the pool is broken."""
        self._numbers = 0
        self._changed = asyncio.Event()
        self._broken: BaseException | None = None
        self.gone: Callable[[ProcessInfo], None] = lambda info: None
        """Called with every process that has left."""
        metrics.RESTARTS.labels(name)

    @property
    def starting(self) -> int:
        """Workers that wait for room or load their models."""
        return len(self._starting)

    def adopt(self, actor: Any, info: ProcessInfo) -> None:
        """Add a process that is ready."""
        worker = Worker(self._numbers, actor, info)
        self._numbers += 1
        self.workers.append(worker)
        self._free.put_nowait(worker)
        metrics.PROCESSES.labels(self.name).set(len(self.workers))
        if not self._replaceable:  # it is another pool that wants them
            metrics.WANTED.labels(self.name).set(len(self.workers))
        self._changed.set()

    def resize(self, count: int) -> None:
        """Have `count` workers: launch what is missing; or give up those that start, and let the newest go as soon as
        they have finished their present task."""
        self.wanted = count
        metrics.WANTED.labels(self.name).set(count)
        staying = self._staying()
        for actor in list(self._starting)[max(0, count - len(staying)) :]:
            self._starting.pop(actor).cancel()
            ray.kill(actor)
        for worker in staying[count:]:
            self._drain(worker)
        self._fill()

    async def up(self, count: int, seconds: float | None = None) -> bool:
        """Wait, for so many seconds at most, until `count` workers are ready; returns whether they are.

        Raises what makes it impossible.
        """
        try:
            async with asyncio.timeout(seconds):
                while len(self._staying()) < count:
                    self._changed.clear()
                    self._check()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def drain(self, nodes: Collection[str]) -> None:
        """Have the workers on some nodes end as soon as they have finished their current task, and start others."""
        for worker in self._staying():
            if worker.info.node_id in nodes and self._replaceable:
                self._drain(worker)
        self._fill()

    async def run(
        self, work: Callable[[Worker], Awaitable[Result]], beside: Callable[[Worker], Awaitable[None]] | None = None
    ) -> Result:
        """The result of `work` on a free worker. If that worker dies, another one reruns it from the start.

        `beside` is what workers without work do meanwhile, in a pool whose workers need each other (`StepPool`).
        """
        for _ in range(TASK_ATTEMPTS):
            worker = await self._next_free()
            try:
                return await work(worker)
            except RayActorError as error:
                if not self._replaceable:
                    raise self.lost(worker, error) from error
                pid, why = worker.info.pid, brief(error)
                logging.getLogger(__name__).warning("%s: process %d died, its task runs again: %s", self.name, pid, why)
                metrics.RESTARTS.labels(self.name).inc()
                self._dismiss(worker)
                await self._dismiss_dead()
                self._fill()
            finally:
                self._release(worker)
        raise RunFailed(f"{TASK_ATTEMPTS} processes of {self.name} died over the same task; their logs say why")

    def lost(self, worker: Worker, error: RayActorError) -> ProcessLost:
        """The error of a worker's death, where it may not be replaced."""
        return ProcessLost(f"process {worker.info.pid} of {self.name} died, and learner state with it: {brief(error)}")

    def count_idle(self) -> None:
        """Add the idle time of workers until now to its counter."""
        for worker in self.workers:
            if not worker.busy:
                self._count_idle(worker)

    def close(self) -> None:
        """End all processes."""
        self.resize(0)
        for worker in list(self.workers):
            self._dismiss(worker)

    def _staying(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.draining]

    def _fill(self) -> None:
        """Launch what is missing."""
        for _ in range(self.wanted - len(self._staying()) - len(self._starting)):
            actor = self._launch()
            self._starting[actor] = asyncio.create_task(self._bring_up(actor))

    async def _bring_up(self, actor: Any) -> None:
        try:
            info = await self._setup(actor)
        except RayActorError as error:  # the process died, or its node
            logging.getLogger(__name__).warning("%s: a process died while it started: %s", self.name, brief(error))
            self._died_starting += 1
            metrics.RESTARTS.labels(self.name).inc()
            if self._died_starting >= START_ATTEMPTS:
                text = f"{START_ATTEMPTS} processes of {self.name} died while they started: {brief(error)}"
                self._break(RunFailed(text))
        except Exception as error:
            self._break(error)
        else:
            self._died_starting = 0
            self._starting.pop(actor)
            self.adopt(actor, info)
            return
        self._starting.pop(actor)
        ray.kill(actor)
        if not self._broken:
            self._fill()

    def _break(self, error: BaseException) -> None:
        """Raise `error` for everyone who waits for a worker."""
        self._broken = error
        self._changed.set()
        self._free.put_nowait(None)

    def _check(self) -> None:
        if self._broken:
            raise self._broken

    async def _next_free(self) -> Worker:
        with metrics.QUEUE_LENGTH.labels("tasks").track_inprogress():
            while True:
                worker = await self._free.get()
                if worker is None:
                    self._free.put_nowait(None)  # the next who waits is to see it too
                self._check()
                if worker and worker in self.workers:
                    break
        self._count_idle(worker)
        worker.busy = True
        return worker

    def _count_idle(self, worker: Worker) -> None:
        now = time.monotonic()
        if self._replaceable:
            metrics.IDLE_SECONDS.labels(self.name).inc(now - worker.idle_since)
        worker.idle_since = now

    def _release(self, worker: Worker) -> None:
        worker.busy, worker.idle_since = False, time.monotonic()
        if worker not in self.workers:
            return
        if worker.draining:
            self._dismiss(worker)
        else:
            self._free.put_nowait(worker)

    def _drain(self, worker: Worker) -> None:
        worker.draining = True
        if not worker.busy:
            self._dismiss(worker)

    async def _dismiss_dead(self) -> None:
        """Let go idle workers that have died too, as with their node: a task would meet one after the other."""
        dead = await asyncio.to_thread(dead_among, [worker.actor for worker in self.workers])
        for worker in list(self.workers):
            if worker.actor in dead and not worker.busy:
                metrics.RESTARTS.labels(self.name).inc()
                self._dismiss(worker)

    def _dismiss(self, worker: Worker) -> None:
        self.workers.remove(worker)
        ray.kill(worker.actor)
        self.gone(worker.info)
        metrics.PROCESSES.labels(self.name).set(len(self.workers))
