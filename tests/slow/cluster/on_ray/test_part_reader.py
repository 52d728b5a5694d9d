"""What a worker sends stays on its node until somebody needs it, and what breaks it off is told."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from branchgrpo.benchmarks.support.local_cluster import several_nodes
from branchgrpo.cluster.on_ray.part_reader import read_parts
from ray.exceptions import ActorDiedError
from ray.experimental import get_object_locations
from support import until

LARGE = 10**6
"""Bytes that don't travel within a message."""


@ray.remote(num_cpus=0.1, resources={"work": 0.1})
class _Worker:
    """Sends two parts of large objects, more slowly than they are read."""

    def sample(self, death: tuple[int, Path] | None, *_: Any) -> Iterator[Any]:
        """Dies at an object, when the folder shows that all parts before it are read."""
        for number, made in enumerate(2 * ("id", "media", "states", "header")):
            time.sleep(0.2)
            if death and number == death[0]:
                while len(list(death[1].iterdir())) < number // 4:
                    time.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)
            yield np.zeros(LARGE, np.uint8) if made in ("media", "states") else f"{made} {number // 4}"


@ray.remote(num_cpus=0.1, resources={"learn": 0.1})
class _Controller:
    """Reads them at the head."""

    async def parts(self, worker: Any, dies_at: int | None, folder: Path) -> tuple[list[str], list[Any], str]:
        """The parts' headers, references to their media and states, and what broke them off."""
        death = None if dies_at is None else (dies_at, folder)
        headers, large = [], []
        pool_worker = SimpleNamespace(actor=worker, info=SimpleNamespace(node_id=None))
        try:
            async for part in read_parts(pool_worker, death, SimpleNamespace(at=lambda node: None), 0):  # type: ignore[arg-type]
                headers.append(part.header)
                (folder / part.header).touch()
                large += [part.media, part.states]
        except ActorDiedError as error:
            return headers, large, type(error).__name__
        return headers, large, ""


@pytest.mark.timeout(300)
def test_parts_arrive_whole_and_their_objects_stay(tmp_path: Path) -> None:
    with several_nodes(1, store=200_000_000) as (address, _):
        ray.init(address)
        try:
            until(lambda: ray.cluster_resources().get("work"))
            controller = _Controller.remote()
            for dies_at, whole in ((None, 2), (0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 1)):
                worker, folder = _Worker.remote(), tmp_path / str(dies_at)
                folder.mkdir()
                headers, large, broken_by = ray.get(controller.parts.remote(worker, dies_at, folder))
                assert headers == ["header 0", "header 1"][:whole]
                assert broken_by == ("" if dies_at is None else "ActorDiedError")
                if dies_at is None:
                    found = get_object_locations(large).values()
                    assert all(entry["object_size"] > LARGE for entry in found)
                    has_work = {node["NodeID"]: "work" in node["Resources"] for node in ray.nodes()}
                    assert [[has_work[node] for node in entry["node_ids"]] for entry in found] == 4 * [[True]]
                ray.kill(worker)
        finally:
            ray.shutdown()
