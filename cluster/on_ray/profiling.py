"""The order to profile some iterations of a run: taken by its controller, passed on with the work, and waited for."""

import asyncio
from collections.abc import Sequence

from ...proto.atomic_files import remove
from ...proto.errors import InputError
from ...proto.profiling import Component, ProfileOrder
from ...proto.settings import RunSettings


class Profiling:
    """Which work of a run is to be profiled at the moment."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._order: ProfileOrder | None = None
        self._done = asyncio.Event()

    async def profiled(
        self, begun: int, iterations: int, components: Sequence[Component], everyone: bool, seconds: float
    ) -> ProfileOrder:
        """Have so many of the iterations after `begun`, the newest that has begun, profiled. Returns when they are.

        Raises InputError if there are none, or if others are being profiled.
        """
        settings = self._settings
        if settings.trace_folder is None:
            raise InputError("this run writes no spans (logging.trace is false), which operations are shown with")
        if self._order:
            raise InputError(
                f"iterations {self._order.first} to {self._order.last} are being profiled already; ask again after them"
            )
        if begun >= settings.iterations:
            raise InputError(f"iteration {begun} of {settings.iterations} has begun; there is none left to profile")
        first, last = begun + 1, min(begun + iterations, settings.iterations)
        folder = settings.trace_folder / f"profile-{first:06d}-{last:06d}"
        if folder.exists():  # of a command that was given up
            remove(folder)
        self._order = order = ProfileOrder(folder, tuple(components), first, last, everyone, seconds)
        self._done.clear()
        await self._done.wait()
        return order

    def iteration_ended(self, number: int) -> None:
        """Fulfil the order if this was its last iteration."""
        if self._order and number >= self._order.last:
            self._order = None
            self._done.set()

    def order(self, component: Component, iteration: int, *, first: bool = True) -> ProfileOrder | None:
        """The order for work of a process on an iteration; None if it isn't to be profiled.

        `first`: whether the process is the one that is profiled where one of its kind is enough.
        """
        order = self._order
        wanted = order and component in order.components and order.first <= iteration <= order.last
        return order if order and wanted and (first or order.everyone) else None
