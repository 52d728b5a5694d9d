"""A pool of learner ranks that sample in step, because each holds a share of one network (ZeRO 3).

Invariant: a piece of work begins when all ranks are free, and then every rank begins something: work of its own, or
keeping the others company. So no rank waits in the network for one that has nothing to do.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Never

from ray.exceptions import RayActorError

from . import metrics
from .iteration import task_group
from .worker_pool import Result, Worker, WorkerPool


class StepPool(WorkerPool):
    """Runs pieces of work in rounds, first come first served: as many at once as there are ranks."""

    def __init__(self, name: str) -> None:
        super().__init__(name, launch=_never, setup=_never, replaceable=False)
        self._waiting: deque[asyncio.Future[list[Worker]]] = deque()
        """The pieces of work that wait: each gets its worker, and after it those that accompany it."""

    async def run(
        self, work: Callable[[Worker], Awaitable[Result]], beside: Callable[[Worker], Awaitable[None]] | None = None
    ) -> Result:
        """The result of `work` on a rank. `beside` is what ranks without work do meanwhile.

        Raises ProcessLost if a rank dies.
        """
        assert beside
        loop = asyncio.get_running_loop()
        piece: asyncio.Future[list[Worker]] = loop.create_future()
        self._waiting.append(piece)
        loop.call_soon(self._begin)  # with all that come at the same time
        with metrics.QUEUE_LENGTH.labels("tasks").track_inprogress():
            worker, *others = await piece
        async with task_group() as group:  # an error of one ends the wait for the others
            for other in others:
                group.create_task(self._work_on(beside, other))
            return await self._work_on(work, worker)

    async def _work_on(self, work: Callable[[Worker], Awaitable[Result]], worker: Worker) -> Result:
        try:
            return await work(worker)
        except RayActorError as error:
            raise self.lost(worker, error) from error
        finally:
            worker.busy = False
            self._begin()

    def _begin(self) -> None:
        """Begin a round if all ranks are free and something waits for them."""
        self._waiting = deque(piece for piece in self._waiting if not piece.cancelled())
        if not self._waiting or any(worker.busy for worker in self.workers):
            return
        pieces = [self._waiting.popleft() for _ in self.workers if self._waiting]
        idle = self.workers[len(pieces) :]
        for i, (piece, worker) in enumerate(zip(pieces, self.workers, strict=False)):
            piece.set_result([worker, *(idle if i == 0 else ())])
        for worker in self.workers:
            worker.busy = True


def _never(*arguments: Any) -> Never:
    raise NotImplementedError("learner ranks are adopted, not launched")
