"""The processes of a run on Ray: thin actors around plain classes.

Models, and the libraries that run them, are loaded in `setup`: the controller, which only holds handles, does without
them, and what loading raises reaches the caller as it is.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray

from ...proto.atomic_files import leave_lost_directory
from ...proto.exporter import start_exporter
from ...proto.logs import mark_warnings
from ...proto.packed_tensor import PackedTensor
from ...proto.remote_tree import PartHeader, RemoteTree, States, part_id, states_of
from ...proto.settings import RunSettings
from ...proto.tracing import span, start_tracing
from ...proto.tree import Task, Window
from ...proto.update_stats import UpdateStats
from .messages import ProcessInfo, WeightsRef

if TYPE_CHECKING:
    from ...learner.learner import Learner
    from ...rollout_workers.policies.base import Policy
    from ...rollout_workers.worker import RolloutWorker

PREVIOUS = "previous.safetensors"
"""File of a checkpoint with the weights of the version before, which a run with `staleness: 1` samples with."""

Weights = dict[str, PackedTensor]


class _Process:
    """The common part of all processes."""

    def __init__(self, settings: RunSettings, directory: tuple[str, str], pool: str, threads: int) -> None:
        """`directory` is name and namespace of the run's controller, which keeps the list of exporters."""
        leave_lost_directory()
        self.settings, self._directory, self._pool, self._threads = settings, directory, pool, threads

    def _prepare(self) -> None:
        import torch

        torch.set_num_threads(self._threads)

    def _ready(self, component: str) -> ProcessInfo:
        mark_warnings()
        start_tracing(self.settings.trace_folder, component, self._pool)
        node, (name, namespace), pool = ray.util.get_node_ip_address(), self._directory, self._pool
        exporter = start_exporter(
            self.settings.logging.metrics_host,
            node,
            lambda address: ray.get_actor(name, namespace).register.remote(address, component, pool),
        )
        return ProcessInfo(os.getpid(), node, ray.get_runtime_context().get_node_id(), exporter)


class _Sampling(_Process):
    """Samples tasks, one at a time."""

    worker: "RolloutWorker"

    def _ready(self, component: str) -> ProcessInfo:
        from ...rollout_workers import metrics  # noqa: F401  # from the first scrape on, the series are there

        return super()._ready(component)

    def sample(
        self, task: Task, weights: WeightsRef, newest: int
    ) -> Iterator[PartHeader | npt.NDArray[np.uint8] | States]:
        """The parts of a task, each as three objects: pictures, states, header.

        `newest` is the version that the learner has reached.
        """
        from ...rollout_workers import metrics

        self._use(weights)
        metrics.WEIGHTS_VERSION.set(weights.version)
        metrics.WEIGHTS_STALENESS.set(newest - weights.version)
        forwards: list[tuple[float, int]] = []

        def observe(rows: int) -> None:
            forwards.append((time.time(), rows))
            metrics.FORWARD_PASSES.inc(rows)
            metrics.FORWARD_ROWS.observe(rows)

        counted = time.perf_counter()
        with span("task", iteration=task.iteration, trees=task.trees):
            for part in self.worker.sample(task, observe):
                metrics.EDGES_SAMPLED.inc(int((part.nodes >= task.schedule.roots).sum()))
                metrics.LEAVES_SAMPLED.inc(len(part.leaves))
                given = time.perf_counter()
                with span("hand over", part=part_id(task.iteration, part.tree, part.leaves)):
                    yield part.media
                    yield states_of(part)
                    yield PartHeader.of(part, forwards)
                forwards.clear()
                now = time.perf_counter()
                metrics.HANDING_OVER_SECONDS.inc(now - given)
                metrics.SAMPLING_SECONDS.inc(now - counted)
                counted = now
        metrics.TASKS.inc()
        metrics.TREES_SAMPLED.inc(len(task.trees))

    def draw(self, task: Task, weights: WeightsRef) -> Iterator[npt.NDArray[np.uint8] | int]:
        """The pictures of an evaluation's task, uint8 [n, height, width, 3], and their number."""
        self._use(weights)
        yield np.concatenate([part.media for part in self.worker.sample(task)])
        yield len(task.prompts)

    def _use(self, weights: WeightsRef) -> None:
        """Load a version of the weights, unless it is the current one."""
        if weights.version != self.worker.version:
            with span("load weights", version=weights.version):
                packed: Weights = ray.get(weights.reference)
                self.worker.adopt(weights.version, {name: value.tensor() for name, value in packed.items()})


class RolloutActor(_Sampling):
    """A rollout worker."""

    def setup(self) -> ProcessInfo:
        from ...rollout_workers.policies.base import add_adapters
        from ...rollout_workers.policies.load import load_policy
        from ...rollout_workers.worker import RolloutWorker

        self._prepare()
        policy = load_policy(self.settings.policy)
        if self.settings.learner.lora:
            add_adapters(policy, self.settings.learner.lora, self.settings.seed)
        # What was loaded from disk is no published version.
        self.worker = RolloutWorker(policy, self.settings.rollout, version=-1)
        return self._ready("rollout")


class LearnerActor(_Process):
    """A learner rank."""

    learner: "Learner"
    network_only = True
    """Whether the process needs no autoencoder and no text encoders."""

    def __init__(
        self, settings: RunSettings, directory: tuple[str, str], pool: str, threads: int, rank: int, ranks: int
    ) -> None:
        super().__init__(settings, directory, pool, threads)
        self.rank, self.ranks = rank, ranks
        self._updates = 0

    def _ready(self, component: str) -> ProcessInfo:
        from ...learner import metrics  # noqa: F401  # as in `_Sampling`

        return super()._ready(component)

    def meeting_place(self) -> tuple[str, int]:
        """Rank 0: open the store at which all ranks meet, and say where."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, self.ranks, True, wait_for_workers=False)
        return host, self._store.port

    def setup(self, meeting: tuple[str, int] | None) -> ProcessInfo:
        """Join the other ranks, if there are any, and load."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from ...learner.deepspeed_setup import join_ranks
        from ...learner.learner import Learner
        from ...rollout_workers.policies.load import find_device

        self._prepare()
        device = find_device(self.settings.policy)
        os.environ["DS_ACCELERATOR"] = device.type
        if meeting:
            if self.rank:
                self._store = TCPStore(*meeting, self.ranks, False)
            join_ranks(self._store, device, rank=self.rank, ranks=self.ranks)
        self.learner = Learner(self._load_policy(), self.settings, _observe_micro_batch)
        return self._ready("learner")

    def _load_policy(self) -> "Policy":
        from ...learner.partitioned import builder
        from ...rollout_workers.policies.load import find_device, load_policy

        policy = self.settings.policy
        build = builder(self.settings.learner, policy.precision, find_device(policy))
        return load_policy(policy, network_only=self.network_only, build=build)

    def accumulate(self, window: Window[RemoteTree[Any]]) -> UpdateStats | None:
        """Add the gradients of a window of scored trees, and make the optimizer step if the window ends an update."""
        from ...learner import metrics

        start = time.perf_counter()
        with span("learn", iteration=window.iteration, trees=[tree.number for tree in window.trees]):
            self.learner.accumulate(window.of(lambda tree: tree.tree(_fetched)))
            stats = self.learner.step() if window.closes_update else None
        metrics.LEARNING_SECONDS.inc(time.perf_counter() - start)
        if self.learner.policy.device.type == "cuda":
            import torch

            metrics.DEVICE_MEMORY.set(torch.cuda.max_memory_allocated(self.learner.policy.device))
        if stats:
            self._count(stats)
        return stats

    def _count(self, stats: UpdateStats) -> None:
        """Count an update. Its figures are equal on all ranks, so only rank 0 increases counters."""
        from ...learner import metrics

        metrics.GRADIENT_NORM.set(stats.gradient_norm)
        metrics.CLIP_FRACTION.set(stats.clip_fraction)
        metrics.RATIO.labels("min").set(stats.ratio_min)
        metrics.RATIO.labels("max").set(stats.ratio_max)
        metrics.KL.set(stats.kl)
        metrics.LEARNING_RATE.set(stats.learning_rate)
        if self._updates % self.settings.learner.updates_per_iteration == 0:
            metrics.LOGPROB_ABS_DIFF.set(stats.logprob_abs_diff)
        self._updates += 1
        if self.rank == 0:
            metrics.UPDATES.inc()
            metrics.EDGES_TRAINED.inc(stats.edges)
            metrics.EDGES_SKIPPED.inc(stats.skipped_edges)
            metrics.EDGES_PRUNED.inc(stats.pruned_edges)

    def publish(self) -> tuple[int, Weights | None]:
        """Make a new version. Returns its number and, on rank 0, its weights."""
        with span("publish", version=self.learner.version + 1):
            self.learner.publish()
            return self.weights()

    def weights(self) -> tuple[int, Weights | None]:
        """The current version's number and, on rank 0, its weights."""
        from ...learner import metrics

        metrics.WEIGHTS_VERSION.set(self.learner.version)
        return self.learner.version, self._packed_weights()

    def previous(self, folder: Path) -> tuple[int, Weights | None]:
        """The number of the version before a checkpoint's and, on rank 0, its weights."""
        import safetensors.torch

        weights = {} if self.rank else safetensors.torch.load_file(folder / PREVIOUS)
        return self.learner.version - 1, {name: PackedTensor.of(value) for name, value in weights.items()}

    def _packed_weights(self) -> Weights | None:
        weights = self.learner.weights()  # of all ranks together
        return None if self.rank else {name: PackedTensor.of(value) for name, value in weights.items()}

    def save(self, folder: Path, previous: WeightsRef | None) -> None:
        """Write a checkpoint into `folder`, and with it the weights of the version before."""
        from ...learner.learner import save_weights

        self.learner.save(folder)
        if previous and self.rank == 0:
            packed: Weights = ray.get(previous.reference)
            save_weights(folder / PREVIOUS, {name: value.tensor() for name, value in packed.items()})

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        self.learner.load(folder)

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts among `prompts` that the policy cuts because they are too long."""
        from ...rollout_workers.policies.base import cut_prompts

        return cut_prompts(self.learner.policy, prompts)

    def export(self, folder: Path) -> None:
        """Write the trained weights in diffusers' format."""
        self.learner.export(folder)


class ColocatedActor(LearnerActor, _Sampling):
    """A learner rank that samples with its own copy of the policy, in turns with learning."""

    network_only = False

    def setup(self, meeting: tuple[str, int] | None) -> ProcessInfo:
        from ...rollout_workers.worker import RolloutWorker

        info = super().setup(meeting)
        self.worker = RolloutWorker(
            self.learner.policy, self.settings.rollout, self.learner.version, self.learner.kept_forwards
        )
        return info

    def _use(self, weights: WeightsRef) -> None:
        """Do nothing: the worker samples with the learner's parameters."""
        if weights.version != self.learner.version:
            raise ValueError(f"task wants weights version {weights.version}; this learner has {self.learner.version}")
        self.worker.adopt(weights.version)

    def _packed_weights(self) -> None:
        """None: no weights are sent."""


def _fetched(states: Any) -> States:
    with span("fetch"):
        fetched: States = ray.get(states)
        return fetched


def _observe_micro_batch(rows: int) -> None:
    from ...learner import metrics

    metrics.ROWS_TRAINED.inc(rows)
    metrics.MICRO_BATCH_ROWS.observe(rows)
