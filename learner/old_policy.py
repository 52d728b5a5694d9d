"""The policy that rollouts sample with, beside the one that is trained, for those who learn from leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy

import torch

from ..proto.settings import NftSettings
from ..proto.tree import Conditioning
from ..rollout_workers.policies.base import Policy, trainable
from .ema import WeightAverage


class OldPolicy:
    """The policy that rollouts sample with: a running average of the trained weights, renewed once per iteration."""

    def __init__(self, policy: Policy, settings: NftSettings, weights: Mapping[str, torch.Tensor]) -> None:
        self._policy = policy
        self.average = WeightAverage(settings.old_decay, weights.items())
        self.weights = {name: parameter.detach().clone() for name, parameter in trainable(policy.network).items()}
        """What the average is at the network's precision, on its device."""

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Continue an average that was kept before, or begin one with these weights."""
        self.average.load(weights)
        self.refresh()

    def sampler(self) -> Policy:
        """A policy for rollouts in this process: the trained one, if the average is its weights, else one with a
        network of its own, which gets `weights` at every publication."""
        if not self.average.decay:
            return self._policy
        own = copy(self._policy)
        own.network = deepcopy(self._policy.network).requires_grad_(False)
        for name in self.weights:
            own.network.get_parameter(name).requires_grad_(True)  # they are those that are loaded
        return own

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The trained network with the old weights, meanwhile."""
        trained = {name: parameter.data for name, parameter in trainable(self._policy.network).items()}
        for name, parameter in trainable(self._policy.network).items():
            parameter.data = self.weights[name]
        try:
            yield
        finally:
            for name, parameter in trainable(self._policy.network).items():
                parameter.data = trained[name]

    def renew(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the trained weights into the average."""
        self.average.update(weights.items())
        self.refresh()

    def refresh(self) -> None:
        """Have `weights` follow the average."""
        for name, value in self.average.weights.items():
            self.weights[name].copy_(value)

    @torch.no_grad()
    def velocity(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The old policy's velocity; arguments and result as of `Policy.velocity`."""
        network = self._policy.network

        def old(**inputs: object) -> tuple[torch.Tensor]:
            return torch.func.functional_call(network, self.weights, (), inputs)  # type: ignore[no-any-return]

        velocity: Callable[..., torch.Tensor] = self._policy.velocity
        return velocity(latents, sigma, conditioning, old)
