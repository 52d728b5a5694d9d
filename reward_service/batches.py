"""Batches of requests: a model that becomes free takes all that waits for it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")


@dataclass(frozen=True)
class _QueuedRequest(Generic[Request, Reply]):
    request: Request
    size: int
    reply: asyncio.Future[Reply]
    since: float = field(default_factory=lambda: asyncio.get_running_loop().time())


class Batches(Generic[Request, Reply]):
    """Requests that are answered together, one batch at a time, in the order of their arrival.

    Ray Serve's batching closes a batch after a wait even while the model is busy. Requests that arrive further apart
    than that wait are then answered one by one, however many of them are waiting. Here a batch is closed when the model
    is free, and its first request has waited for `wait_seconds` or the batch is full.
    """

    def __init__(
        self, answer: Callable[[Sequence[Request]], Awaitable[Sequence[Reply]]], max_size: int, wait_seconds: float
    ) -> None:
        """`answer` gives a batch's replies; `max_size` is of all requests of a batch. A larger one is a batch alone."""
        self._answer, self._max_size, self._wait_seconds = answer, max_size, wait_seconds
        self._waiting: deque[_QueuedRequest[Request, Reply]] = deque()
        self._full = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    async def reply(self, request: Request, size: int) -> Reply:
        """The reply to a request of so many items. What `answer` raises is raised for every request of the batch."""
        own: _QueuedRequest[Request, Reply] = _QueuedRequest(request, size, asyncio.get_running_loop().create_future())
        self._waiting.append(own)
        if sum(waiting.size for waiting in self._waiting) >= self._max_size:
            self._full.set()
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all())
        return await own.reply

    async def _answer_all(self) -> None:
        while self._waiting:
            try:
                async with asyncio.timeout_at(self._waiting[0].since + self._wait_seconds):
                    await self._full.wait()
            except TimeoutError:
                pass
            if batch := self._take_batch():
                await self._answer_batch(batch)

    def _take_batch(self) -> list[_QueuedRequest[Request, Reply]]:
        """The next batch, without the requests that were given up."""
        batch: list[_QueuedRequest[Request, Reply]] = []
        size = 0
        while self._waiting and (not batch or size + self._waiting[0].size <= self._max_size):
            first = self._waiting.popleft()
            if not first.reply.done():
                batch.append(first)
                size += first.size
        if sum(waiting.size for waiting in self._waiting) < self._max_size:
            self._full.clear()
        return batch

    async def _answer_batch(self, batch: Sequence[_QueuedRequest[Request, Reply]]) -> None:
        try:
            replies = await self._answer([waiting.request for waiting in batch])
            for waiting, reply in zip(batch, replies, strict=True):
                if not waiting.reply.done():
                    waiting.reply.set_result(reply)
        except Exception as error:
            for waiting in batch:
                if not waiting.reply.done():
                    waiting.reply.set_exception(error)
