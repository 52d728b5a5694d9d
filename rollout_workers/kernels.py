"""Transition kernels: how the next state is drawn from the present one and the predicted velocity.

Every kernel here is linear in state x and velocity v,

    x_next ~ Normal(a * x + b * v, std^2),

so a kernel is three numbers per step, computed once from the noise levels, and rows of different steps or kernels
share one batch. Rectified flow: x = (1 - s) * x0 + s * eps, v = eps - x0, so the estimates of the clean state and of
the noise are x - s * v and x + (1 - s) * v.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..proto.schedule import Kernel, Schedule


@dataclass(frozen=True)
class Transition:
    """Coefficients of one step."""

    a: float
    b: float
    std: float


def transition(kernel: Kernel, s: float, s_next: float, eta: float, s_second: float) -> Transition:
    """Coefficients of `kernel` for the step from noise level `s` to `s_next` (METHOD: Flow-GRPO, DanceGRPO, CPS).

    `s_second` is the schedule's second noise level, which `flow` takes for s where 1 - s would be 0.
    """
    ds = s_next - s
    if kernel == "ode":
        return Transition(1.0, ds, 0.0)
    if kernel == "cps":
        std = s_next * math.sin(eta * math.pi / 2)
        kept = math.sqrt(s_next**2 - std**2)
        return Transition((1 - s_next) + kept, -(1 - s_next) * s + kept * (1 - s), std)
    # `dance` and `flow` add eta^2/2 * score * ds to the ODE's drift, with score = -(x + (1 - s) * v) / s;
    # they differ in how the noise grows with s.
    level = eta if kernel == "dance" else eta * math.sqrt(s / (1 - (s_second if s == 1 else s)))
    push = level**2 * ds / (2 * s)
    return Transition(1 + push, ds + push * (1 - s), level * math.sqrt(-ds))


@dataclass(frozen=True)
class Transitions:
    """Coefficients of all steps of a schedule, each float32 [steps]."""

    a: torch.Tensor
    b: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, schedule: Schedule, sigmas: Sequence[float]) -> "Transitions":
        """From noise levels [steps + 1] that fall from 1 to 0. Raises ValueError if they don't fit the schedule."""
        if len(sigmas) != len(schedule.steps) + 1:
            raise ValueError(f"{len(sigmas)} sigmas for {len(schedule.steps)} steps; one more than steps is needed")
        steps = [
            transition(step.kernel, s, s_next, step.eta, sigmas[1])
            for step, s, s_next in zip(schedule.steps, sigmas[:-1], sigmas[1:], strict=True)
        ]
        return cls(*(torch.tensor([getattr(step, name) for step in steps]) for name in ("a", "b", "std")))

    def mean(self, step: torch.Tensor | int, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Mean of the next state, float32 like `x` [rows, ...]; `step` is one number or int64 [rows]."""
        a, b = (_per_row(table, step, x) for table in (self.a, self.b))
        return a * x.float() + b * v.float()

    def logprob(self, step: torch.Tensor | int, child: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Gaussian log-density of `child` averaged over latent dimensions, float32 [rows].

        `child` must be in the dtype in which it is stored: rounding it afterwards would move the ratio by more than
        the clip range.
        """
        std = _per_row(self.std, step, mean)
        density = -((child.float() - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        return density.flatten(1).mean(dim=1)


def _per_row(table: torch.Tensor, step: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
    """Entries of `table` for each row of `like`, shaped to broadcast over it."""
    values = table.to(like.device)[step]
    return values.reshape(-1, *[1] * (like.dim() - 1)) if values.dim() else values
