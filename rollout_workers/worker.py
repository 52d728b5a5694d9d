"""The rollout worker: a policy, and one task at a time."""

from collections.abc import Callable, Iterator, Mapping

import torch

from ..proto.packed_tensor import KeptForward
from ..proto.settings import RolloutSettings
from ..proto.tree import Task, TreePart
from .expansion import expand
from .policies.base import Policy, load_weights, with_guidance
from .policies.embeddings import Embeddings


class RolloutWorker:
    """Samples the trees of tasks. A plain class: whoever launches it decides where it runs."""

    def __init__(self, policy: Policy, settings: RolloutSettings, kept: list[KeptForward] | None = None) -> None:
        """Forward passes whose rows are trained are added to `kept`, if it is given, for a learner in this process."""
        self.policy, self.settings, self.kept = policy, settings, kept
        self.weights_version = 0
        self.embeddings = Embeddings(policy, settings.embeddings)
        self._embeddings: dict[float | None, Embeddings] = {None: self.embeddings}
        """By guidance scale: without guidance a conditioning has no negative prompt."""

    def sample(self, task: Task, observe: Callable[[int], None] = lambda rows: None) -> Iterator[TreePart]:
        """Parts of the task's trees as they finish; `observe` is told the rows of every forward pass.

        Raises ValueError if the task wants other weights, InputError if it wants a guidance that the policy can't have.
        """
        if task.weights_version != self.weights_version:
            raise ValueError(
                f"task wants weights version {task.weights_version}; this worker has {self.weights_version}"
            )
        scale = task.guidance_scale
        policy = self.policy if scale is None else with_guidance(self.policy, scale)
        if scale not in self._embeddings:
            self._embeddings[scale] = Embeddings(policy, self.settings.embeddings)
        conditionings = self._embeddings[scale].of(task.prompts)
        return expand(policy, task, conditionings, self.settings, observe, self.kept)

    def load(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Take over published weights."""
        load_weights(self.policy.network, weights)
        self.weights_version = version
