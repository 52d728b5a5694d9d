"""The policy before training, for the KL term."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..proto.settings import RunSettings
from ..rollout_workers.policies.base import Network, Policy, without_adapters
from ..rollout_workers.policies.load import load_policy
from .partitioned import builder, gathering


class Reference:
    """The policy before training. With new adapters it is the same network without them; otherwise it is a second
    network, sharded over ranks like the first."""

    def __init__(self, policy: Policy, settings: RunSettings) -> None:
        """Loads a second network if there must be one. Collective."""
        self._policy = policy
        self.network: Network | None = None
        """The second network."""
        start = settings.policy.start_from
        if settings.learner.lora is None or (start and start.lora == "train"):
            build = builder(settings.learner, settings.policy.precision, policy.device)
            network = load_policy(settings.policy.merged, network_only=True, build=build).network.requires_grad_(False)
            self.network = gathering(network, settings.learner, settings.policy.precision) if build else network

    @torch.no_grad()
    def velocity(self, *arguments: object) -> torch.Tensor:
        """The reference policy's velocity; arguments and result as of `Policy.velocity`."""
        velocity: Callable[..., torch.Tensor] = self._policy.velocity
        if self.network is not None:
            return velocity(*arguments, self.network)
        with without_adapters(self._policy.network):
            return velocity(*arguments)
