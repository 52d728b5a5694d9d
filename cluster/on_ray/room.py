"""Room for trees that are sampled ahead of the learner: what bounds the object store."""

import asyncio

from . import metrics


class Room:
    """Places for so many trees, each taken from the start of its task until the learner has worked on it."""

    def __init__(self, places: int) -> None:
        self._places, self.taken = places, 0
        self._turn, self._freed = asyncio.Lock(), asyncio.Condition()

    async def take(self, trees: int) -> None:
        """Take places as soon as there are enough, in the order of calls: a small task that overtook a larger one could
        take the places that the learner's next window needs."""
        with metrics.QUEUE_LENGTH.labels("tasks").track_inprogress():
            async with self._turn, self._freed:
                await self._freed.wait_for(lambda: self.taken + trees <= self._places)
                self.taken += trees

    async def free(self, trees: int) -> None:
        """Give places back."""
        async with self._freed:
            self.taken -= trees
            self._freed.notify_all()
