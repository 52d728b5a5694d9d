"""The policy as it was before training, for the KL term."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from ..rollout_workers.policies.base import Policy, without_adapters


class Reference:
    """With adapters it is the same network without them; else a copy, which every rank keeps whole."""

    def __init__(self, policy: Policy, *, adapters: bool) -> None:
        """Takes the policy's weights as they are now."""
        self._policy = policy
        self._copy = None if adapters else copy.deepcopy(policy.network).requires_grad_(False)

    @torch.no_grad()
    def velocity(self, *arguments: object) -> torch.Tensor:
        """As the policy's."""
        velocity: Callable[..., torch.Tensor] = self._policy.velocity
        if self._copy is not None:
            return velocity(*arguments, self._copy)
        with without_adapters(self._policy.network):
            return velocity(*arguments)
