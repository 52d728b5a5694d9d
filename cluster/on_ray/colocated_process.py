"""The work of a learner rank that samples too. Apart, so that other ranks don't export the metrics of sampling."""

from typing import Any

from ...proto.tree import Task
from ...proto.usage import export
from ...rollout_workers.in_step import WorkerInStep
from ...rollout_workers.worker import RolloutWorker
from .broadcast import Weights
from .learner_process import LearnerProcess
from .messages import Launch, WeightsRef
from .rollout_process import Sampler


class ColocatedProcess(LearnerProcess, Sampler):
    """A learner rank that samples with the policy that it trains, in turns with learning."""

    network_only = False

    def __init__(self, launch: Launch, meeting: tuple[str, int] | None, store: Any) -> None:
        super().__init__(launch, meeting, store)
        export("rollout")
        own, rollout = self.learner, launch.settings.rollout
        if launch.settings.samples_in_step:
            self.worker = WorkerInStep(own.policy, rollout, own.version, own.engine.module)
        else:
            self.worker = RolloutWorker(own.policy, rollout, own.version, own.kept_forwards)

    def accompany(self, task: Task, weights: WeightsRef) -> None:
        """Take part in the sampling of other ranks, of which one samples `task`, until all are done."""
        self._use(weights)
        assert isinstance(self.worker, WorkerInStep)
        self.worker.accompany(task)

    def pieces(self) -> list[Weights]:
        """No pieces: the weights aren't sent."""
        return []

    def _use(self, weights: WeightsRef) -> None:
        """Do nothing: the worker samples with the learner's parameters."""
        if weights.version != self.learner.version:
            raise ValueError(f"task wants weights version {weights.version}; this learner has {self.learner.version}")
        self.worker.adopt(weights.version)
