"""The actors of a run on Ray: shells around its processes, which are loaded in `setup`.

The controller, which only holds handles, does without models and the libraries that run them, and what loading raises
reaches it as it is. `rollout_process.py` and `learner_process.py` hold the work.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ...proto.atomic_files import leave_lost_directory
from ...proto.exporter import start_exporter
from ...proto.logs import mark_warnings
from ...proto.profiling import ProfileOrder, ProfilerScope
from ...proto.remote_tree import RemoteTree
from ...proto.tracing import start_tracing
from ...proto.tree import Task, Window
from ...proto.update_stats import UpdateStats
from ...proto.usage import Usage
from ..plan.utilisation import count_kinds
from .broadcast import Weights, fetch
from .messages import Launch, ProcessInfo, WeightsRef

if TYPE_CHECKING:
    from .learner_process import LearnerProcess
    from .rollout_process import Sampler

FETCHING = "fetching"
"""The group of calls that a learner rank answers while it learns, one at a time."""


class _Shell:
    """The common part of all actors."""

    def __init__(self, launch: Launch) -> None:
        leave_lost_directory()
        self.launch = launch

    def _ready(self, component: str) -> ProcessInfo:
        """Report that everything is loaded, and start to be watched: by warnings, spans and metrics."""
        mark_warnings()
        settings, (name, namespace), pool = self.launch.settings, self.launch.directory, self.launch.pool
        start_tracing(settings.trace_folder, component, pool)
        node = ray.util.get_node_ip_address()
        exporter = start_exporter(
            settings.logging.metrics_host,
            node,
            lambda address: ray.get_actor(name, namespace).register.remote(address, component, pool),
        )
        return ProcessInfo(os.getpid(), node, ray.get_runtime_context().get_node_id(), exporter)


class RolloutActor(_Shell):
    """A rollout worker; its methods are those of `RolloutProcess`."""

    sampler: "Sampler"

    def setup(self) -> ProcessInfo:
        from .rollout_process import RolloutProcess

        self.sampler = RolloutProcess(self.launch)
        return self._ready("rollout")

    def sample(self, task: Task, weights: WeightsRef, newest: int, order: ProfileOrder | None = None) -> Iterator[Any]:
        with ProfilerScope(order) as profiled:
            yield from self.sampler.sample(task, weights, newest, profiled)

    def pass_on(self, copies: Sequence[Any]) -> Weights:
        """A piece of the weights, for the next node and for all processes of this one."""
        return fetch(copies)

    def draw(self, task: Task, weights: WeightsRef) -> Iterator[Any]:
        yield from self.sampler.draw(task, weights)


class LearnerActor(_Shell):
    """A learner rank; its methods are those of `LearnerProcess`."""

    process: "LearnerProcess"
    _store: Any = None

    def meeting_place(self) -> tuple[str, int]:
        """Rank 0: open the store at which all ranks meet, and say where."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, self.launch.ranks, True, wait_for_workers=False)
        return host, self._store.port

    def setup(self, meeting: tuple[str, int] | None) -> ProcessInfo:
        """Join the other ranks at `meeting`, if there are any, and load."""
        from .learner_process import LearnerProcess

        self.process = LearnerProcess(self.launch, meeting, self._store)
        return self._ready("learner")

    def fetch_ahead(self, window: Window[RemoteTree[Any]]) -> None:
        self.process.fetch_ahead(window)

    def accumulate(
        self, window: Window[RemoteTree[Any]], order: ProfileOrder | None = None
    ) -> tuple[UpdateStats | None, Usage]:
        with ProfilerScope(order):
            return self.process.accumulate(window)

    def publish(self) -> Iterator[Any]:
        yield from self.process.publish()

    def weights(self) -> Iterator[Any]:
        yield from self.process.weights()

    def previous(self, folder: Path) -> Iterator[Any]:
        yield from self.process.previous(folder)

    def save(self, folder: Path, previous: WeightsRef | None) -> None:
        self.process.save(folder, previous)

    def load(self, folder: Path) -> None:
        self.process.load(folder)

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        return self.process.cut_prompts(prompts)

    def export(self, folder: Path) -> None:
        self.process.learner.export(folder)

    def kinds_of_work(self) -> dict[str, float]:
        return count_kinds(self.launch.settings)


class ColocatedActor(LearnerActor, RolloutActor):
    """A learner rank that samples too; its methods are those of `ColocatedProcess`."""

    def setup(self, meeting: tuple[str, int] | None) -> ProcessInfo:  # type: ignore[override]
        from .colocated_process import ColocatedProcess

        self.process = self.sampler = self.both = ColocatedProcess(self.launch, meeting, self._store)
        return self._ready("learner")

    def accompany(self, task: Task, weights: WeightsRef) -> None:
        self.both.accompany(task, weights)
