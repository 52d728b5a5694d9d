"""References to the objects of a stream, which stay where they were made.

Ray's own iteration (`async for`, `anext`) brings an object to this node whenever it has to wait for it.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ray

SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.02
"""Seconds between two looks whether an object is there: a stream that takes its time is looked at less often."""


async def unfetched(stream: Any, count: int) -> AsyncIterator[Any]:
    """References to the next `count` objects of a stream, each as soon as its object is there.

    The object isn't fetched. Raises what broke the stream off; if the last reference is to that, it is raised when the
    reference is awaited.
    """
    for _ in range(count):
        pause = SHORTEST_PAUSE
        while not ray.wait([stream], timeout=0, fetch_local=False)[0]:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        try:
            reference = await anext(stream)
        except StopAsyncIteration:
            await stream.completed()
            raise EOFError(f"a stream has ended before {count} more objects") from None
        yield reference
