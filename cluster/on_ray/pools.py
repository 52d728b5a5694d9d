"""The pools of a run: how its processes are launched, resized and ended."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

import ray

from ...proto.errors import InputError
from ...proto.exporter import ExporterDirectory
from ...proto.settings import PoolSettings, RunSettings
from ...proto.tree import Task
from . import metrics
from .actors import FETCHING, ColocatedActor, LearnerActor, RolloutActor
from .autoscaling import IterationTiming, workers_wanted
from .broadcast import PASSED_AT_ONCE, RELAY_GROUP
from .learner_group import LearnerGroup
from .messages import Launch, PublishedWeights, Sizes
from .names import application_name
from .reward_deployment import RewardDeployment
from .step_pool import StepPool
from .worker_pool import Result, Worker, WorkerPool

SCALING_SECONDS = 60
"""Seconds that a scaling command waits for new workers."""


class Pools:
    """Rollout workers, learner ranks and reward models of one run. `placement` decides which share processes."""

    def __init__(
        self,
        settings: RunSettings,
        directory: tuple[str, str],
        exporters: ExporterDirectory,
        sizes: Sizes,
    ) -> None:
        """`directory` is name and namespace of the actor that keeps the list of `exporters`; `sizes`, what was scaled
        before the run was set up again."""
        self.settings, self._directory, self._exporters, self.sizes = settings, directory, exporters, sizes
        self._colocated = settings.placement == "colocated"
        self._deployment = RewardDeployment(settings, application_name(settings.name), directory, settings.trace_folder)
        self.learner = LearnerGroup([])
        self.workers = self._worker_pool()
        self.workers.gone = lambda info: exporters.forget(info.exporter)

    def _launch_learner(self) -> LearnerGroup:
        pool = self.settings.pools.learner
        actor = self._remote(
            ColocatedActor if self._colocated else LearnerActor, pool, concurrency_groups={FETCHING: 1}
        )
        launch = Launch(self.settings, self._directory, "learner", self.settings.threads_of(pool), ranks=pool.count)
        return LearnerGroup([actor.remote(replace(launch, rank=rank)) for rank in range(pool.count)])

    def _worker_pool(self) -> WorkerPool:
        if self.settings.samples_in_step:
            return StepPool("rollout_workers")
        pool = self.settings.pools.rollout_workers
        actor = self._remote(RolloutActor, pool, concurrency_groups={RELAY_GROUP: PASSED_AT_ONCE})
        launch = Launch(self.settings, self._directory, "rollout_workers", self.settings.threads_of(pool))
        return WorkerPool(
            "rollout_workers",
            launch=lambda: actor.remote(launch),
            setup=lambda worker: worker.setup.remote(),
            replaceable=not self._colocated,
        )

    async def start(self) -> None:
        """Launch everything at once; returns when the minimum that the run needs is ready.

        Raises what loading a model raised.
        """
        least = 0 if self._colocated else self.sizes.rollout_workers or self.settings.pools.rollout_workers.count
        self.learner = self._launch_learner()
        self.workers.resize(least)
        await asyncio.gather(self.learner.setup(), self._deploy(), self.workers.up(min(least, 1)))
        metrics.PROCESSES.labels("learner").set(len(self.learner.actors))
        if self._colocated:
            for actor, info in zip(self.learner.actors, self.learner.infos, strict=True):
                self.workers.adopt(actor, info)
        for model in self._deployment.models:
            metrics.RETRIES.labels(model)
        self.rewards = self._deployment.client(retried=lambda model: metrics.RETRIES.labels(model).inc())
        await self.rewards.check()

    async def run(self, task: Task, weights: PublishedWeights, work: Callable[[Worker], Awaitable[Result]]) -> Result:
        """The result of `work`, which has a task sampled with some weights, on a free worker."""
        return await self.workers.run(work, beside=lambda idle: idle.actor.accompany.remote(task, weights.own))

    def relays(self) -> dict[str, Any]:
        """Node id -> a rollout worker there."""
        return {worker.info.node_id: worker.actor for worker in self.workers.workers}

    async def scale(self, rollout_workers: int | None, rewards: dict[str, int]) -> int:
        """Change the number of rollout workers and of replicas, which then stay as they are.

        Returns how many workers and replicas haven't come up in a minute, for lack of room. Raises InputError for what
        can't be changed.
        """
        names = {reward: model for model, given in self._deployment.models.items() for reward in given}
        for reward in rewards:
            if reward not in names:
                raise InputError(f"--reward names '{reward}'; this run has {', '.join(names)}")
        if rollout_workers is not None:
            if self._colocated:
                raise InputError(
                    "--rollout-workers can't be changed with placement 'colocated': every learner rank is a worker"
                )
            self.workers.resize(rollout_workers)
        scaled = {names[reward]: count for reward, count in rewards.items()}
        self.sizes = Sizes(rollout_workers or self.sizes.rollout_workers, {**self.sizes.rewards, **scaled})
        if rewards:
            await self._deploy()
        await self.workers.up(rollout_workers or 0, SCALING_SECONDS)
        up = {model: await asyncio.to_thread(self._deployment.running, model) for model in scaled}
        return self.workers.starting + sum(max(0, count - up[model]) for model, count in scaled.items())

    def adapt(self, observed: IterationTiming) -> None:
        """Have as many rollout workers as the run is best off with, by what an iteration was like."""
        pool = self.settings.pools.rollout_workers
        if pool.max_count and not self._colocated and self.sizes.rollout_workers is None:
            self.workers.resize(workers_wanted(observed, pool.count, pool.max_count))

    def kill_the_silent(self, silence: Callable[[str], float]) -> None:
        """Kill processes that hang, as if they had died. `silence`: seconds since an exporter gave a sign of life."""
        limit = self.settings.pools.heartbeat_timeout_seconds
        workers = [(worker.actor, worker.info) for worker in self.workers.workers]
        for actor, info in [*workers, *zip(self.learner.actors, self.learner.infos, strict=False)]:
            if silence(info.exporter) > limit:
                logging.getLogger(__name__).warning(
                    "process %d on %s has given no sign of life for %.0f s and is killed", info.pid, info.node, limit
                )
                ray.kill(actor)
                self._exporters.forget(info.exporter)

    def drain(self, nodes: Collection[str]) -> bool:
        """Drain the workers on nodes that are about to go. Returns whether a learner rank is on one."""
        self.workers.drain(nodes)
        return any(info.node_id in nodes for info in self.learner.infos)

    async def status(self) -> dict[str, Any]:
        """Every process, by pool."""
        return {
            "rollout_workers": [
                {
                    "pid": worker.info.pid,
                    "node": worker.info.node,
                    "state": "draining" if worker.draining else "busy" if worker.busy else "idle",
                }
                for worker in self.workers.workers
            ]
            + [{"pid": "", "node": "", "state": "starting"}] * self.workers.starting,
            "learner": [{"pid": info.pid, "node": info.node, "state": "up"} for info in self.learner.infos],
            "rewards": await asyncio.to_thread(self._deployment.replicas),
        }

    async def close(self) -> None:
        """End all processes; the Serve application stays."""
        self.workers.close()
        for actor in self.learner.actors:
            ray.kill(actor)

    async def _deploy(self) -> None:
        """Bring the reward models to the sizes that are wanted."""
        await asyncio.to_thread(self._deployment.start, self.sizes.rewards)

    def _remote(self, plain: type, pool: PoolSettings, **more: Any) -> Any:
        """`plain` as an actor with what the pool sets aside for it, and `more` options."""
        options: dict[str, Any] = {
            **more,
            "num_cpus": pool.cpus,
            "num_gpus": pool.gpus,
            "resources": dict(pool.resources),
        }
        if pool.labels:
            options["label_selector"] = dict(pool.labels)
        return ray.remote(**options)(plain)
