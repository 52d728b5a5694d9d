"""A pool of workers on a real Ray: a task outlives any number of idle workers, and runs are found by their actors."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from branchgrpo.cluster.on_ray.connect import NAMESPACE, connected, named_controller, run_controllers
from branchgrpo.cluster.on_ray.internals import dead_among
from branchgrpo.cluster.on_ray.messages import ProcessInfo
from branchgrpo.cluster.on_ray.names import controller_name
from branchgrpo.cluster.on_ray.worker_pool import TASK_ATTEMPTS, Worker, WorkerPool
from support import until


@ray.remote(num_cpus=0)
class Process:
    def setup(self) -> ProcessInfo:
        return ProcessInfo(1, "127.0.0.1", "node", "exporter")

    def work(self) -> str:
        return "done"


@pytest.fixture
def on_ray(head: str) -> Iterator[None]:
    with connected(head):
        yield


def test_a_task_outlives_the_death_of_all_idle_workers(on_ray: None) -> None:
    """As with their node: it would meet one dead worker after the other, and be taken for what kills them."""

    async def run() -> str:
        pool = WorkerPool("rollout_workers", Process.remote, lambda actor: actor.setup.remote())
        pool.resize(TASK_ATTEMPTS + 1)
        assert await pool.up(TASK_ATTEMPTS + 1, 60)
        idle = [worker.actor for worker in pool.workers]
        for actor in idle:
            ray.kill(actor)
        until(lambda: len(dead_among(idle)) == len(idle))

        async def work(worker: Worker) -> Any:
            return await worker.actor.work.remote()

        done = str(await pool.run(work))
        assert await pool.up(TASK_ATTEMPTS + 1, 60), "others are started in their place"
        pool.close()
        return done

    assert asyncio.run(run()) == "done"


@pytest.mark.parametrize("name", ["short", "漢字" * 20, "x y " * 40])
def test_runs_are_found_whatever_their_names(name: str, on_ray: None) -> None:
    before = run_controllers().keys()
    actor = Process.options(name=controller_name(name), namespace=NAMESPACE).remote()
    assert ray.get(named_controller(name).work.remote()) == "done"
    (new,) = run_controllers().keys() - before
    assert ray.get(run_controllers()[new].work.remote()) == "done"
    assert name.startswith(new[:5])
    ray.kill(actor)
    until(lambda: run_controllers().keys() == before)
