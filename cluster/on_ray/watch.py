"""Supervision of a run, every second: hung processes, draining nodes, storage, seconds spent."""

import asyncio
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import ray

from ...proto.exporter import ExporterDirectory
from ...proto.settings import RunSettings
from ..run.phases import Timeline
from . import metrics
from .internals import draining_nodes, free_resources
from .iteration import Iteration
from .messages import ControllerState
from .pools import Pools


class Watch:
    """Supervises the processes of a run, and reports its status."""

    def __init__(self, settings: RunSettings, pools: Pools, exporters: ExporterDirectory) -> None:
        self.settings, self.pools, self.exporters = settings, pools, exporters
        self.progress = ("starting", 0.0)
        """The current phase, and the fraction of it that is done, 0 to 1."""
        self.iterations: list[Iteration] = []
        """The running iterations."""
        self.iterations_done = 0
        self.learner_draining = False
        """Whether a learner rank is on a node that is about to be taken away."""

    async def every_second(self) -> None:
        """Kill hung processes, drain nodes that are about to be taken away, and update the counters of seconds.

        It runs forever. Counters grow while a phase runs, not only when it has ended.
        """
        while True:
            self.pools.workers.count_idle()
            self.pools.kill_the_silent(self.exporters.silence)
            try:
                self.learner_draining = self.pools.drain(await asyncio.to_thread(draining_nodes))
                store, disk = await asyncio.to_thread(_storage_used, self.settings.runs)
            except Exception:  # the GCS may be restarting, the disk be gone: keep counting what follows
                logging.getLogger(__name__).debug("storage could not be looked at", exc_info=True)
            else:
                metrics.OBJECT_STORE_USED.set(store)
                metrics.DISK_USED.set(disk)
            for iteration in self.iterations:
                self._count_seconds(iteration)
            await asyncio.sleep(1)

    def done(self, iteration: Iteration) -> None:
        """Record that an iteration has ended."""
        self._count_seconds(iteration)
        metrics.HELD_UP_SECONDS.inc(iteration.held_up_seconds)
        self.iterations.remove(iteration)
        self.iterations_done = iteration.number

    @property
    def newest(self) -> int:
        """The newest iteration that has begun, if only with sampling ahead; 0 before the first."""
        return max((iteration.number for iteration in self.iterations), default=self.iterations_done)

    def state(self) -> ControllerState:
        """The controller's progress, for its driver."""
        return ControllerState(*self.progress, self.pools.sizes)

    async def status(self, version: int, trees_in_flight: int) -> dict[str, Any]:
        """Finished iterations, the current phase, and every process, as plain data."""
        phase, share = self.progress
        return {
            "run": self.settings.name,
            "pid": os.getpid(),
            "iterations": {"done": self.iterations_done, "of": self.settings.iterations},
            "phase": phase,
            "share": share,
            "weights_version": version,
            "trees_in_flight": trees_in_flight,
            "pools": await self.pools.status(),
        }

    def _count_seconds(self, iteration: Iteration) -> None:
        """Bring the counters of seconds up to now."""
        ranks, seconds = self.settings.pools.learner.count, phase_seconds(iteration.timeline)
        totals = {metrics.PHASE_SECONDS.labels(name): spent for name, spent in seconds.items()}
        if self.settings.placement == "colocated":  # while others sample, a rank samples too
            for pool in ("learner", "rollout_workers"):
                totals[metrics.IDLE_SECONDS.labels(pool)] = seconds["waiting"] * ranks
        else:
            totals[metrics.IDLE_SECONDS.labels("learner")] = iteration.timeline.seconds("waiting") * ranks
        for counter, total in totals.items():
            if (more := total - iteration.counted.get(counter, 0.0)) > 0:
                counter.inc(more)
                iteration.counted[counter] = total


def phase_seconds(timeline: Timeline) -> dict[str, float]:
    """Seconds of each phase until now. Scoring counts as waiting when it isn't hidden by sampling."""
    seconds = {name: timeline.seconds(name) for name in metrics.PHASES}
    seconds["waiting"] = timeline.seconds("waiting", "rollout") - seconds["rollout"]
    return seconds


def _storage_used(folder: Path) -> tuple[float, float]:
    """The used fractions of the object store, on the node where it is largest, and of the disk of a folder."""
    name, free = "object_store_memory", free_resources()
    totals = {node["NodeID"]: node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]}
    shares = [1 - free[node].get(name, 0.0) / total for node, total in totals.items() if total and node in free]
    disk = shutil.disk_usage(folder)
    return max(shares, default=0.0), disk.used / (disk.used + disk.free)
