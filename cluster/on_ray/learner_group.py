"""The ranks of the learner, called together."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from ...proto.profiling import ProfileOrder
from ...proto.remote_tree import RemoteTree
from ...proto.tree import Window
from ...proto.update_stats import UpdateStats
from ...proto.usage import NOTHING, Usage
from .actors import FETCHING
from .broadcast import Chain
from .messages import NewVersion, ProcessInfo, PublishedWeights, WeightsRef
from .streams import unfetched


class LearnerGroup:
    """The ranks of the learner. Every call goes to all ranks at once, because their work is collective."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors
        self.infos: list[ProcessInfo] = []

    async def setup(self) -> None:
        """Have the ranks meet and load; returns when all are ready."""
        meeting = await self.actors[0].meeting_place.remote() if len(self.actors) > 1 else None
        self.infos = await self._all(lambda rank: rank.setup.remote(meeting))

    def give(self, window: Window[RemoteTree[Any]]) -> Any:
        """What `accumulate` takes of a window of scored trees."""
        # Written once, however many ranks read it: of large runs this is what the controller is busiest with.
        return window if len(self.actors) == 1 else ray.put(window)

    def fetch_ahead(self, window: Window[RemoteTree[Any]]) -> Any:
        """Have every rank fetch the states that it needs of the next window, while it works on another one. Returns
        what `accumulate` takes."""
        given = self.give(window)
        for actor in self.actors:
            actor.fetch_ahead.options(concurrency_group=FETCHING).remote(given)
        return given

    async def accumulate(self, given: Any, order: ProfileOrder | None = None) -> tuple[UpdateStats | None, Usage]:
        """Add the gradients of a window that `give` returned. Returns the update's figures if the window ends an
        update, and what all ranks have spent.

        With `order`, rank 0 is profiled, or all of them.
        """
        orders = [order if order and (order.everyone or rank == 0) else None for rank in range(len(self.actors))]
        calls = (actor.accumulate.remote(given, own) for actor, own in zip(self.actors, orders, strict=True))
        done: list[tuple[UpdateStats | None, Usage]] = await asyncio.gather(*calls)
        first, *others = (stats for stats, _ in done)
        if first:
            for other in others:
                pairs = zip(first.recorded, other.recorded if other else (), strict=True)
                first.recorded = tuple(own.joined(more) for own, more in pairs)
        return first, sum((usage for _, usage in done), NOTHING)

    async def publish(self, relays: Mapping[str, Any]) -> tuple[PublishedWeights, Usage]:
        """Make a new version of the weights, which `relays`, a process on each node of workers, pass on. Returns it,
        and what all ranks have spent."""
        return await self._version(lambda rank: rank.publish, relays)

    async def weights(self, relays: Mapping[str, Any]) -> PublishedWeights:
        """The current version of the weights."""
        return (await self._version(lambda rank: rank.weights, relays))[0]

    async def previous(self, relays: Mapping[str, Any], folder: Path) -> PublishedWeights:
        """The version before a checkpoint's, whose weights are stored beside it."""
        return (await self._version(lambda rank: rank.previous, relays, folder))[0]

    async def save(self, folder: Path, previous: WeightsRef | None) -> None:
        """Write a checkpoint into `folder`, and with it the weights of the version before, if they are given."""
        await self._all(lambda rank: rank.save.remote(folder, previous))

    async def load(self, folder: Path) -> None:
        """Continue from a checkpoint. Raises InputError if it holds other weights than are trained."""
        await self._all(lambda rank: rank.load.remote(folder))

    async def export(self, folder: Path) -> None:
        """Write the trained weights in diffusers' format."""
        await self._all(lambda rank: rank.export.remote(folder))

    async def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts among `prompts` that the policy cuts because they are too long. Only rank 0 is asked."""
        cut: list[str] = await self.actors[0].cut_prompts.remote(prompts)
        return cut

    async def kinds_of_work(self) -> dict[str, float]:
        """Kind of work -> the floating-point operations of one, without those that can't be counted. Only rank 0 is
        asked."""
        kinds: dict[str, float] = await self.actors[0].kinds_of_work.remote()
        return kinds

    async def _all(self, call: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        return list(await asyncio.gather(*map(call, self.actors)))

    async def _version(
        self, method: Callable[[Any], Any], relays: Mapping[str, Any], *arguments: Any
    ) -> tuple[PublishedWeights, Usage]:
        """A version whose pieces rank 0 gives, and what all ranks have spent."""
        streams = [method(actor).options(num_returns="streaming").remote(*arguments) for actor in self.actors]
        said = await asyncio.gather(*map(_first, streams))
        elsewhere = {node: relay for node, relay in relays.items() if node != self.infos[0].node_id}
        chain = Chain(said[0].version, elsewhere if len(elsewhere) > 1 and said[0].pieces > 1 else {})
        async for piece in unfetched(streams[0], said[0].pieces):
            chain.send(piece)
        await streams[0].completed()  # raises what broke it off
        return chain.published(), sum((rank.usage for rank in said), NOTHING)


async def _first(stream: Any) -> NewVersion:
    """The first object of a stream, which says what follows."""
    said: NewVersion = await (await anext(stream))
    return said
