"""The rollout worker: a policy, and one task at a time."""

from collections.abc import Iterator, Mapping

import torch

from ..proto.packed_tensor import ForwardCache
from ..proto.settings import RolloutSettings
from ..proto.tree import Conditioning, SampledPart, Task
from . import metrics
from .expansion import expand
from .policies.base import Network, Policy, load_weights, with_guidance
from .policies.embeddings import Embeddings


class RolloutWorker:
    """Samples the trees of tasks. A plain class, which may run in any process."""

    def __init__(
        self,
        policy: Policy,
        settings: RolloutSettings,
        version: int = 0,
        kept_forwards: ForwardCache | None = None,
        network: Network | None = None,
    ) -> None:
        """`version` is that of the policy's weights. Forward passes whose rows are trained are put into
        `kept_forwards`, if it is given, for a learner in this process. `network` takes the place of the policy's
        own."""
        self.policy, self.settings, self.kept_forwards, self.network = policy, settings, kept_forwards, network
        self.version = version
        self.embeddings = Embeddings(policy, settings.embeddings)
        self._embeddings: dict[float | None, Embeddings] = {None: self.embeddings}
        """Guidance scale -> embeddings: without guidance, a conditioning has no negative prompt."""

    def sample(self, task: Task) -> Iterator[SampledPart]:
        """Parts of the task's trees as they finish.

        Raises ValueError if the task wants other weights, InputError if it wants a guidance that the policy can't have.
        """
        if task.weights_version != self.version:
            raise ValueError(f"task wants weights version {task.weights_version}; this worker has {self.version}")
        policy, conditionings = self.prompted(task)
        parts = expand(policy, task, conditionings, self.settings, self.kept_forwards, self.network)
        return _counted(parts, task) if task.iteration else parts  # evaluations aren't counted

    def prompted(self, task: Task) -> tuple[Policy, list[Conditioning]]:
        """The policy with the guidance that a task wants, and the conditioning of each of the task's prompts.

        Raises InputError for a guidance that the policy can't have.
        """
        scale = task.guidance_scale
        policy = self.policy if scale is None else with_guidance(self.policy, scale)
        if scale not in self._embeddings:
            self._embeddings[scale] = Embeddings(policy, self.settings.embeddings)
        return policy, self._embeddings[scale].of(task.prompts)

    def adopt(self, version: int, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Sample with a published version from now on: with `weights`, or, as they are, with those of the learner that
        this worker shares its policy with."""
        if weights is not None:
            load_weights(self.policy.network, weights)
        self.version = version
        metrics.WEIGHTS_VERSION.set(version)


def _counted(parts: Iterator[SampledPart], task: Task) -> Iterator[SampledPart]:
    """`parts` of a task, whose edges and leaves are counted as they are handed out, and its trees at their end."""
    for part in parts:
        metrics.EDGES_SAMPLED.inc(int((part.nodes >= task.schedule.roots).sum()))
        metrics.LEAVES_SAMPLED.inc(len(part.leaves))
        yield part
    metrics.TASKS.inc()
    metrics.TREES_SAMPLED.inc(len(task.trees))
