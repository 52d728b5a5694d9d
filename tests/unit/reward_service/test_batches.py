"""Which requests are answered together."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from branchgrpo.reward_service.batches import Batches

NEVER = 600.0
"""Seconds of a wait that no test sees the end of."""


class Model:
    """A model that a test sets free; it answers a request by ten times the request."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Semaphore(0)

    async def __call__(self, requests: Sequence[int]) -> list[int]:
        self.batches.append(list(requests))
        await self.free.acquire()
        if 13 in requests:
            raise ValueError("unlucky")
        return [10 * request for request in requests]


def in_a_loop(test: Callable[[Model], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test(Model())

    asyncio.run(limited())


async def asked(batches: Batches[int, int], *requests: int) -> list[asyncio.Task[int]]:
    """Tasks that wait for their replies; each request's size is itself."""
    tasks = [asyncio.create_task(batches.reply(request, request)) for request in requests]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_free_model_takes_all_that_came_while_it_was_busy() -> None:
    async def test(model: Model) -> None:
        batches = Batches(model, max_size=100, wait_seconds=0)
        tasks = await asked(batches, 1)
        await until(lambda: len(model.batches) == 1)
        for request in (2, 3, 4):  # one after the other, each long after the wait of the one before
            tasks += await asked(batches, request)
            await asyncio.sleep(0.005)
        model.free.release()
        await until(lambda: len(model.batches) == 2)
        model.free.release()
        assert await asyncio.gather(*tasks) == [10, 20, 30, 40]
        assert model.batches == [[1], [2, 3, 4]]

    in_a_loop(test)


def test_batches_keep_the_order_and_the_size() -> None:
    async def test(model: Model) -> None:
        batches = Batches(model, max_size=10, wait_seconds=0)
        tasks = await asked(batches, 4, 6, 1, 25, 7, 2, 3)  # 25 is larger than a batch, and is one alone
        for _ in range(9):
            model.free.release()
        assert await asyncio.gather(*tasks) == [40, 60, 10, 250, 70, 20, 30]
        assert model.batches == [[4, 6], [1], [25], [7, 2], [3]]

    in_a_loop(test)


def test_an_idle_model_waits_for_more_unless_the_batch_is_full() -> None:
    async def test(model: Model) -> None:
        batches = Batches(model, max_size=10, wait_seconds=NEVER)
        model.free.release()
        tasks = await asked(batches, 4)
        await asyncio.sleep(0.02)
        assert model.batches == []
        tasks += await asked(batches, 6)
        assert await asyncio.gather(*tasks) == [40, 60]
        (last,) = await asked(batches, 5)
        await asyncio.sleep(0.02)
        assert model.batches == [[4, 6]]  # the next one waits anew
        last.cancel()

    in_a_loop(test)


def test_a_lone_request_is_answered() -> None:
    async def test(model: Model) -> None:
        model.free.release()
        assert await Batches(model, max_size=10, wait_seconds=0.01).reply(1, 1) == 10

    in_a_loop(test)


def test_a_request_that_is_given_up_delays_no_other() -> None:
    async def test(model: Model) -> None:
        batches = Batches(model, max_size=10, wait_seconds=0)
        first, second, third = [*await asked(batches, 10), *await asked(batches, 5, 6)]
        second.cancel()
        model.free.release()
        model.free.release()
        assert await asyncio.gather(first, third) == [100, 60]
        assert model.batches == [[10], [6]]

    in_a_loop(test)


def test_an_error_is_told_to_its_batch_alone() -> None:
    async def test(model: Model) -> None:
        batches = Batches(model, max_size=20, wait_seconds=0)
        tasks = await asked(batches, 13, 7, 20)
        model.free.release()
        model.free.release()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(reply) for reply in replies] == ["unlucky", "unlucky", "200"]
        model.free.release()
        with pytest.raises(ValueError, match="unlucky"):
            await batches.reply(13, 13)

    in_a_loop(test)
