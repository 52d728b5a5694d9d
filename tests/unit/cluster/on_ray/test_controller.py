"""The controller without Ray: what it knows after a resume, and tasks whose pictures are lost."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from branchgrpo.cluster.on_ray import controller, worker_pool
from branchgrpo.cluster.on_ray.controller import Controller
from branchgrpo.cluster.on_ray.iteration import Iteration
from branchgrpo.cluster.on_ray.messages import ProcessInfo, PublishedWeights, WeightsRef
from branchgrpo.cluster.on_ray.part_reader import ArrivedPart
from branchgrpo.cluster.on_ray.room import Room
from branchgrpo.cluster.on_ray.worker_pool import Worker, WorkerPool
from branchgrpo.cluster.run.planner import Plan, Planner
from branchgrpo.proto.remote_tree import PartHeader
from branchgrpo.proto.scoring import ScoreReply
from branchgrpo.proto.tree import Task
from ray.exceptions import ObjectLostError, RayActorError
from support import Settings

WEIGHTS = PublishedWeights(3, WeightsRef(0, None))


async def nothing(*given: Any) -> None:
    """Takes the place of a process' work."""


async def newest(*given: Any) -> PublishedWeights:
    """What a learner publishes that was loaded after three iterations."""
    return WEIGHTS


def without_processes(run_settings: Settings, **pools: Any) -> Controller:
    made = Controller.__new__(Controller)
    made.settings = run_settings({"execution": "ray", "rollout.trees_per_task": 4})
    made.planner = Planner(made.settings, ["1", "2", "3", "4"])
    made.pools = SimpleNamespace(relays=list, **pools)
    made.watch = SimpleNamespace(iterations_done=0)
    made.profiling = SimpleNamespace(order=lambda *given, **more: None)
    made.published, made._room, made._in_scoring = [], Room(100), asyncio.Semaphore(16)
    return made


def test_after_a_resume_iterations_count_as_done(run_settings: Settings, tmp_path: Path) -> None:
    learner = SimpleNamespace(load=nothing, weights=newest)
    resumed = without_processes(run_settings, learner=learner)
    resumed.planner.save(tmp_path)
    asyncio.run(resumed.load(tmp_path))
    assert resumed.watch.iterations_done == 3


def test_lost_pictures_of_a_dead_worker_are_sampled_once(
    run_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker's pictures are lost with its node, and then it is found dead."""
    attempts = []

    async def read_parts(worker: Worker, task: Task, *more: Any) -> AsyncIterator[ArrivedPart]:
        attempts.append(worker.number)
        schedule = task.schedule
        leaves = np.arange(schedule.first_node[-2], schedule.nodes)
        for tree in task.trees:
            header = PartHeader(tree, np.arange(schedule.nodes), np.zeros(schedule.nodes, np.float32), leaves, (), None)
            yield ArrivedPart("there" if worker.number else "lost", None, header)
        if not worker.number:
            await asyncio.sleep(0.01)
            raise RayActorError()

    async def score(media: str, prompts: list[str], rewards: list[str], request: str, order: Any) -> ScoreReply:
        if media == "lost":
            raise ObjectLostError("00" * 28, None, "")
        return ScoreReply({name: np.zeros(len(prompts)) for name in rewards}, request)

    async def sampled() -> None:
        workers = WorkerPool("rollout_workers", launch=lambda: None, setup=nothing)
        for number in range(3):
            workers.adopt(SimpleNamespace(), ProcessInfo(number, "node", f"{number}", ""))
        made = without_processes(
            run_settings,
            workers=workers,
            rewards=SimpleNamespace(score=score),
            run=lambda task, weights, work: workers.run(work),
        )
        made.published.append(WEIGHTS)
        plan = Plan(4, made.settings.schedule.build(), ["1", "2", "3", "4"], [0, 1, 2, 3])
        await Iteration(plan, made.settings, WEIGHTS, made._sample_task).sampled()

    monkeypatch.setattr(controller, "read_parts", read_parts)
    monkeypatch.setattr(worker_pool, "dead_among", lambda actors: [])
    monkeypatch.setattr(worker_pool.ray, "kill", lambda actor: None)
    asyncio.run(sampled())
    assert attempts == [0, 1]
