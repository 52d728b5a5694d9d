"""The ranks of the learner, called together."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from ...proto.remote_tree import RemoteTree
from ...proto.update_stats import UpdateStats
from .messages import ProcessInfo, WeightsRef


class LearnerGroup:
    """Every call goes to all ranks at once: what they do is collective."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors
        self.infos: list[ProcessInfo] = []

    async def setup(self) -> None:
        """Have the ranks meet and load; returns when all are ready."""
        meeting = await self.actors[0].meeting_place.remote() if len(self.actors) > 1 else None
        self.infos = await self._all("setup", meeting)

    async def take(self, trees: Sequence[RemoteTree[Any]], update: bool) -> UpdateStats | None:
        # Written once, however many ranks read it: of large runs this is what the controller is busiest with.
        window = list(trees) if len(self.actors) == 1 else ray.put(list(trees))
        stats = await self._all("take", window, update)
        return stats[0]

    async def publish(self) -> WeightsRef:
        """A new version of the weights."""
        return await self._weights("publish")

    async def weights(self) -> WeightsRef:
        """The present version of the weights."""
        return await self._weights("weights")

    async def previous(self, folder: Path) -> WeightsRef:
        """The version before a checkpoint's, whose weights lie beside it."""
        return await self._weights("previous", folder)

    async def save(self, folder: Path, previous: WeightsRef | None) -> None:
        await self._all("save", folder, previous)

    async def load(self, folder: Path) -> None:
        await self._all("load", folder)

    async def export(self, folder: Path) -> None:
        await self._all("export", folder)

    async def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Those of `prompts` of which the policy takes the beginning only. Of rank 0 alone."""
        cut: list[str] = await self.actors[0].cut_prompts.remote(prompts)
        return cut

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        return list(await asyncio.gather(*(getattr(actor, method).remote(*arguments) for actor in self.actors)))

    async def _weights(self, method: str, *arguments: Any) -> WeightsRef:
        """Version and reference of what every rank returns; rank 0 has the weights."""
        calls = [getattr(actor, method).options(num_returns=2).remote(*arguments) for actor in self.actors]
        versions = await asyncio.gather(*(version for version, _ in calls))
        return WeightsRef(versions[0], calls[0][1])
