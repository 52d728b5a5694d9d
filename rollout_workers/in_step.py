"""Sampling with a network of which every rank holds a share (ZeRO 3): all ranks make each of its passes together.

Ranks begin their tasks together, and none is done before all are. Before every pass they agree whether any of them has
one to make. If so, a rank with none of its own makes one of a single row, whose result is dropped. So ranks may differ
in their tasks' trees, rows and passes, and still none waits for a pass that another never makes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed

from ..proto.settings import RolloutSettings
from ..proto.tree import SampledPart, Task
from .policies.base import Network, Policy, collate
from .worker import RolloutWorker


class _NoneWorks(BaseException):  # an adapter of the user's may catch, or report, any Exception
    """No rank has a pass to make."""


class SharedNetwork:
    """A network that the ranks gather layer by layer, for passes that all of them make together."""

    def __init__(self, network: Network, device: torch.device) -> None:
        """`device` is that of the collectives."""
        self._network, self._device, self._idle = network, device, False

    def __call__(self, *arguments: Any, **named: Any) -> tuple[torch.Tensor]:
        """The network's result, as soon as all ranks make a pass."""
        working = torch.tensor(int(not self._idle), device=self._device)
        distributed.all_reduce(working, distributed.ReduceOp.MAX)
        if not working:
            raise _NoneWorks
        return self._network(*arguments, **named)

    def accompany(self, make_pass: Callable[[], object]) -> None:
        """Call `make_pass`, which calls this network, as often as other ranks need it: until none has a pass to
        make."""
        self._idle = True
        try:
            while True:
                make_pass()
        except _NoneWorks:
            return
        finally:
            self._idle = False


class WorkerInStep(RolloutWorker):
    """Samples tasks that other ranks' tasks accompany. Every rank must sample one, or `accompany`, as often as all."""

    def __init__(self, policy: Policy, settings: RolloutSettings, version: int, network: Network) -> None:
        """`network` is what the ranks share: the policy's own as their engine has it."""
        shared = SharedNetwork(network, policy.device)
        super().__init__(policy, settings, version, network=shared)
        self._shared = shared

    def sample(self, task: Task) -> Iterator[SampledPart]:
        """Sample a task as every worker does, then make passes for other ranks until they have sampled theirs."""
        yield from super().sample(task)
        self.accompany(task)

    @torch.no_grad()
    def accompany(self, task: Task) -> None:
        """Make passes for other ranks until all have sampled their tasks. The row of this one is the first prompt of
        `task`."""
        policy, conditionings = self.prompted(task)
        states = torch.zeros(1, *policy.latent_shape, device=policy.device)
        sigma, conditioning = torch.ones(1, device=policy.device), collate(conditionings[:1], policy.device)
        self._shared.accompany(lambda: policy.velocity(states, sigma, conditioning, self._shared))
