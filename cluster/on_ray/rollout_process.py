"""The work of a rollout worker on Ray: tasks are sampled with published weights, and their parts handed over."""

import time
from collections.abc import Iterator

import torch

from ...proto.media import Media, joined
from ...proto.profiling import ProfilerScope
from ...proto.remote_tree import PartHeader, States, part_id, states_of
from ...proto.tracing import span
from ...proto.tree import Task
from ...proto.usage import Stopwatch, export
from ...rollout_workers import metrics
from ...rollout_workers.policies.base import add_adapters
from ...rollout_workers.policies.load import load_policy
from ...rollout_workers.worker import RolloutWorker
from ..plan.utilisation import note_device
from .broadcast import read
from .messages import Launch, WeightsRef


class Sampler:
    """Samples tasks, one at a time, with the weights that each wants."""

    worker: RolloutWorker

    def sample(
        self, task: Task, weights: WeightsRef, newest: int, profiled: ProfilerScope
    ) -> Iterator[str | Media | States | PartHeader]:
        """The parts of a task, each as four objects: its id, which announces the others, then media, states, header.

        `newest` is the version that the learner has reached. Where the task is `profiled`, that may end after a part.
        """
        self._use(weights)
        metrics.WEIGHTS_STALENESS.set(newest - weights.version)
        counted = time.perf_counter()
        watch = Stopwatch("rollout")
        with span("task", iteration=task.iteration, trees=task.trees):
            for part in self.worker.sample(task):
                given, usage = time.perf_counter(), watch.lap()
                name = part_id(task.iteration, part.tree, part.leaves)
                with span("hand over", part=name):
                    yield name
                    yield part.media
                    yield states_of(part)
                    yield PartHeader.of(part, usage)
                profiled.between()
                watch.start()
                now = time.perf_counter()
                metrics.HANDING_OVER_SECONDS.inc(now - given)
                metrics.SAMPLING_SECONDS.inc(now - counted)
                counted = now

    def draw(self, task: Task, weights: WeightsRef) -> Iterator[Media | int]:
        """The media of an evaluation's task, and their number."""
        self._use(weights)
        yield joined([part.media for part in self.worker.sample(task)])
        yield len(task.prompts)

    def _use(self, weights: WeightsRef) -> None:
        """Load a version of the weights, unless it is the current one."""
        if weights.version != self.worker.version:
            with span("load weights", version=weights.version):
                self.worker.adopt(weights.version, {name: value.tensor() for name, value in read(weights).items()})


class RolloutProcess(Sampler):
    """A rollout worker with a policy of its own."""

    def __init__(self, launch: Launch) -> None:
        """Loads the policy. Raises InputError if it can't be loaded."""
        torch.set_num_threads(launch.threads)
        export("rollout")
        settings = launch.settings
        policy = load_policy(settings.policy)
        if settings.learner.lora:
            add_adapters(policy, settings.learner.lora, settings.seed)
        note_device(policy.device, settings.policy.precision)
        # What was loaded from disk is no published version.
        self.worker = RolloutWorker(policy, settings.rollout, version=-1)
