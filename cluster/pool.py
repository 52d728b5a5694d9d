"""A pool of rollout workers: work goes to whoever is free, the dead are replaced, and the pool can grow and shrink."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

from ..proto.errors import RunFailed
from . import metrics
from .messages import ProcessInfo

Result = TypeVar("Result")
ATTEMPTS = 4
"""Workers that may die over one piece of work before the run gives up."""


@dataclass
class Worker:
    """One process of a pool."""

    number: int
    actor: Any
    info: ProcessInfo
    busy: bool = False
    leaving: bool = False
    """Goes as soon as its present work is done."""
    idle_since: float = field(default_factory=time.monotonic)


class WorkerPool:
    """Runs pieces of work, first come first served, each on one worker at a time."""

    def __init__(
        self,
        name: str,
        launch: Callable[[], Any],
        setup: Callable[[Any], Awaitable[ProcessInfo]],
        may_be_replaced: bool = True,
    ) -> None:
        """`launch` starts an actor, `setup` waits until it is ready. Workers that hold more than they can be given
        again may not be replaced. They have other work too, so what time they are idle isn't counted here."""
        self.name, self._launch, self._setup, self._may_be_replaced = name, launch, setup, may_be_replaced
        self.workers: list[Worker] = []
        self._free: asyncio.Queue[Worker] = asyncio.Queue()
        self._numbers = 0
        self.gone: Callable[[ProcessInfo], None] = lambda info: None
        """Is told of every process that has left."""
        metrics.RESTARTS.labels(name)

    def adopt(self, actor: Any, info: ProcessInfo) -> None:
        """Take in a process that is ready."""
        worker = Worker(self._numbers, actor, info)
        self._numbers += 1
        self.workers.append(worker)
        self._free.put_nowait(worker)
        metrics.PROCESSES.labels(self.name).set(len(self.workers))

    async def grow(self, count: int) -> None:
        """Start `count` more workers and wait until they are ready."""
        actors = [self._launch() for _ in range(count)]
        try:
            for actor, info in zip(actors, await asyncio.gather(*map(self._setup, actors)), strict=True):
                self.adopt(actor, info)
        except BaseException:
            for actor in actors:
                ray.kill(actor)
            raise

    async def resize(self, count: int) -> None:
        """Grow at once, or let the newest workers go as soon as they have finished their present task."""
        staying = [worker for worker in self.workers if not worker.leaving]
        for worker in staying[count:]:
            worker.leaving = True
            if not worker.busy:
                self._dismiss(worker)
        if count > len(staying):
            await self.grow(count - len(staying))

    async def run(self, work: Callable[[Worker], Awaitable[Result]]) -> Result:
        """What `work` returns of a free worker. If that dies, another does it again from the start."""
        for _ in range(ATTEMPTS):
            worker = await self._next_free()
            try:
                return await work(worker)
            except RayActorError as error:
                pid = worker.info.pid
                logging.getLogger(__name__).warning(
                    "%s: process %d died, its task runs again: %s", self.name, pid, error
                )
                if not self._may_be_replaced:
                    raise RunFailed(f"a process of {self.name} died, and learner state with it: {error}") from error
                await self._replace(worker)
            finally:
                self._release(worker)
        raise RunFailed(f"{ATTEMPTS} processes of {self.name} died over the same task; their logs tell why")

    def count_idle(self) -> None:
        """Add the time that idle workers have had nothing to do until now to its counter."""
        for worker in self.workers:
            if not worker.busy:
                self._count_idle(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in list(self.workers):
            self._dismiss(worker)

    async def _next_free(self) -> Worker:
        with metrics.QUEUE_LENGTH.labels("tasks").track_inprogress():
            while True:
                worker = await self._free.get()
                if worker in self.workers:
                    break
        self._count_idle(worker)
        worker.busy = True
        return worker

    def _count_idle(self, worker: Worker) -> None:
        now = time.monotonic()
        if self._may_be_replaced:
            metrics.IDLE_SECONDS.labels(self.name).inc(now - worker.idle_since)
        worker.idle_since = now

    def _release(self, worker: Worker) -> None:
        worker.busy, worker.idle_since = False, time.monotonic()
        if worker not in self.workers:
            return
        if worker.leaving:
            self._dismiss(worker)
        else:
            self._free.put_nowait(worker)

    async def _replace(self, worker: Worker) -> None:
        self._dismiss(worker)
        metrics.RESTARTS.labels(self.name).inc()
        if not worker.leaving:
            await self.grow(1)

    def _dismiss(self, worker: Worker) -> None:
        self.workers.remove(worker)
        ray.kill(worker.actor)
        self.gone(worker.info)
        metrics.PROCESSES.labels(self.name).set(len(self.workers))
