"""The order to profile some iterations of a run on Ray: taken by its controller, passed on with the work, and waited
for."""

import asyncio

from ...proto.errors import InputError
from ...proto.profiling import ProfileOrder, ProfileRequest
from ...proto.settings import RunSettings
from ..run.profiling import Profiling, folder_of_spans, must_go_on, new_name


class AwaitedProfiling(Profiling):
    """Takes one request after the other, from callers that wait for it."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._done = asyncio.Event()

    async def profiled(self, begun: int, request: ProfileRequest) -> ProfileOrder:
        """Have iterations after `begun`, the newest that has begun, profiled. Returns when they are over.

        Raises InputError if there are none, or if others are being profiled.
        """
        spans, now, iterations = folder_of_spans(self._settings), self.current, self._settings.iterations
        if now:
            raise InputError(f"iterations {now.first} to {now.last} are being profiled already; ask again after them")
        must_go_on(begun, iterations)
        self.current = order = request.order(spans / new_name(), begun, iterations)
        self._done.clear()
        await self._done.wait()
        return order

    def iteration_ended(self, number: int) -> None:
        """Fulfil the order if this was its last iteration."""
        if self.current and number >= self.current.last:
            self.current = None
            self._done.set()
