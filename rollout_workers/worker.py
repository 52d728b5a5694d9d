"""The rollout worker: a policy, a schedule, and one task at a time."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from ..proto.schedule import Schedule
from ..proto.settings import RolloutSettings
from ..proto.tree import Conditioning, Subtree, Task
from .expansion import expand
from .policies.base import Policy, load_weights


class RolloutWorker:
    """Samples the trees of tasks. A plain class: whoever launches it decides where it runs."""

    def __init__(self, policy: Policy, schedule: Schedule, settings: RolloutSettings) -> None:
        self.policy, self.schedule, self.settings = policy, schedule, settings
        self.weights_version = 0
        self._conditionings: dict[str, Conditioning] = {}

    def sample(self, task: Task) -> Iterator[Subtree]:
        """Parts of the task's trees as they finish. Raises ValueError if the task wants other weights."""
        if task.weights_version != self.weights_version:
            raise ValueError(
                f"task wants weights version {task.weights_version}; this worker has {self.weights_version}"
            )
        return expand(self.policy, self.schedule, task, self.encode(task.prompts), self.settings)

    def encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Conditioning of each prompt, computed once and alone: in a batch its last bits would depend on others."""
        for prompt in prompts:
            if prompt not in self._conditionings:
                self._conditionings[prompt] = self.policy.encode(prompt)
        return [self._conditionings[prompt] for prompt in prompts]

    def load(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Take over published weights."""
        load_weights(self.policy.network, weights)
        self.weights_version = version
