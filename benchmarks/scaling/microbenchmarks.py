"""Measured limits of the controller, the object store and the preparation of pictures, on this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from ...proto.remote_tree import PartHeader, RemoteTree, States
from ...proto.settings import RunSettings
from ...proto.tree import Task, TreePart
from ..support.demo import stand_in_run
from ..support.timed_loop import on_ray

CALLS = 100
TRANSFERRED = 256 * 2**20
STORE = 2 * 2**30


def crowded(models: int) -> RunSettings:
    """A run with nearly free forward passes, in which every leaf is a part."""
    scorers = dict(list({"constant": "instant_scorer", "another": "another_scorer"}.items())[:models])
    sections = {
        "name": "crowded",
        "prompts.per_iteration": 16,
        "schedule": {"steps": 6, "splits": {0: 2, 1: 2, 2: 2, 3: 2}, "eta": 0.7},
        "rollout": {"trees_per_task": 4, "max_batch_rows": 1},
    }
    return stand_in_run("InstantPolicy", scorers, 2, sections)


def controller_seconds(models: int, rounds: int = 4) -> float:
    """CPU seconds of the controller's process for a part and the replies of so many reward models; median."""
    recipe = crowded(models)
    parts = recipe.prompts.per_iteration * recipe.schedule.build().leaves
    seconds = []
    with on_ray(recipe) as loop:
        process = psutil.Process(loop.status()["pid"])
        for iteration in range(1, rounds + 2):
            before = sum(process.cpu_times()[:2])
            loop.iterate(iteration)
            seconds.append((sum(process.cpu_times()[:2]) - before) / parts)
    return statistics.median(seconds[1:])


class _Rank:
    def accumulate(self, window: Any) -> None:
        """The message to a learner rank."""


def on_one_node(parts: Sequence[TreePart], states: States, task: Task, window: int) -> dict[str, float]:
    """Bytes per second into and out of the object store; seconds to write a tree, and to hand a window to a rank."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=STORE, logging_level="error")
    try:
        size = sum(packed.bits.nbytes for packed in states.values())
        reference: Any = None

        def put() -> None:
            nonlocal reference
            reference = ray.put(states)

        def get() -> None:
            for packed in ray.get(reference).values():
                packed.tensor().clone()

        store = {"put": size / _seconds(put), "get": size / _seconds(get)}
        rank = ray.remote(num_cpus=0)(_Rank).remote()
        trees = [
            RemoteTree(n, task.prompts[0], task.schedule, [(PartHeader.of(p), ray.put(n)) for p in parts], {})
            for n in range(window)
        ]
        written = _seconds(lambda: ray.put(trees)) / window
        told = ray.put(trees)
        ray.get(rank.accumulate.remote(told))
        start = time.process_time()
        ray.get([rank.accumulate.remote(told) for _ in range(CALLS)])
        return {**store, "window tree": written, "window rank": (time.process_time() - start) / CALLS}
    finally:
        ray.shutdown()


def between_nodes() -> float:
    """Bytes per second that Ray carries from one node's store to another's, both on this machine; the most of five."""
    cluster = Cluster()
    cluster.add_node(num_cpus=1, object_store_memory=STORE, include_dashboard=False)
    ray.init(address=cluster.address, logging_level="error")
    try:
        cluster.add_node(num_cpus=1, object_store_memory=STORE, resources={"other": 1})

        @ray.remote(num_cpus=0, resources={"other": 1})  # type: ignore[untyped-decorator]
        def fetched(reference: list[Any]) -> float:
            start = time.perf_counter()
            ray.get(reference[0])
            return time.perf_counter() - start

        value = np.ones(TRANSFERRED, np.uint8)
        return TRANSFERRED / min(ray.get(fetched.remote([ray.put(value)])) for _ in range(5))
    finally:
        ray.shutdown()
        cluster.shutdown()


def prepared_picture(pixels: int, size: int) -> float:
    """Seconds of one core to make a picture ready for a reward model: smaller, and in float32."""
    picture = np.random.default_rng(0).integers(0, 256, (pixels, pixels, 3), np.uint8)

    def prepare() -> None:
        small = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
        np.asarray(small, np.float32).transpose(2, 0, 1) / 255

    return _seconds(prepare)


def _seconds(call: Callable[[], object], rounds: int = 7) -> float:
    """The fastest, after one to warm up: what else the machine does only adds to it."""
    spent = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent[1:])
