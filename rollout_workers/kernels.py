"""Transition kernels: how the next state is drawn from the current one and the predicted velocity.

Every kernel here is linear in state x and velocity v,

    x_next ~ Normal(a * x + b * v, std^2),

so a kernel is three numbers per step, computed once from the noise levels, and rows of different steps or kernels
share one batch. (The multistep solver `dpm` adds c times the clean state that was predicted one step before.)

Rectified flow: x = (1 - s) * x0 + s * eps, v = eps - x0, so the estimates of the clean state and of the noise are
x - s * v and x + (1 - s) * v.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..proto.errors import InputError
from ..proto.schedule import DETERMINISTIC_KERNELS, Kernel, Schedule, Step

ROUNDING = 2e-4
"""A first noise level this near to 1 is 1, and a last one this near to 0 is 0: they come in float32, whose rounding a
small timestep shift magnifies a hundredfold, and twice where diffusers shifts twice."""


@dataclass(frozen=True)
class StepCoefficients:
    """Coefficients of one step."""

    a: float
    b: float
    std: float = 0.0
    c: float = 0.0


def step_coefficients(kernel: Kernel, s: float, s_next: float, eta: float, s_second: float) -> StepCoefficients:
    """Coefficients of `kernel` for the step from noise level `s` to `s_next` (Flow-GRPO, DanceGRPO, CPS, DDIM).

    1 >= s > s_next >= 0, as `grid_levels` has them. `s_second` is the schedule's second noise level, which `flow` takes
    for s where 1 - s would be 0.
    """
    ds = s_next - s
    if kernel in DETERMINISTIC_KERNELS:
        return StepCoefficients(1.0, ds)
    if kernel in ("cps", "ddim"):
        # The clean state, and noise of which a part is new: two parts whose squares add up to 1.
        new, old = _angle(eta) if kernel == "cps" else _ddim_parts(s, s_next, eta)
        kept = s_next * old
        return StepCoefficients((1 - s_next) + kept, -(1 - s_next) * s + kept * (1 - s), s_next * new)
    # `dance` and `flow` add eta^2/2 * score * ds to the ODE's drift, with score = -(x + (1 - s) * v) / s;
    # they differ in how the noise grows with s.
    level = eta if kernel == "dance" else eta * math.sqrt(s / (1 - (s if s < 1 else s_second)))
    push = level**2 * ds / (2 * s)
    return StepCoefficients(1 + push, ds + push * (1 - s), level * math.sqrt(-ds))


def _angle(eta: float) -> tuple[float, float]:
    """New and old noise of CPS: sine and cosine, of which neither leaves its bounds by rounding."""
    return math.sin(eta * math.pi / 2), math.cos(eta * math.pi / 2)


def _ddim_parts(s: float, s_next: float, eta: float) -> tuple[float, float]:
    """New and old noise of DDIM (arXiv 2010.02502, eq. 16), as shares of the noise at `s_next`.

    With q the ratio of noise to signal at `s_next` over that at `s`, DDIM's sigma is eta * sqrt(1 - q^2) of the noise
    that is there. Written as sums and products of what is not negative, so that no root meets a rounding error.
    """
    q = (1 - s) / s * s_next / (1 - s_next)
    return eta * math.sqrt((1 - q) * (1 + q)), math.hypot(math.sqrt((1 - eta) * (1 + eta)), eta * q)


def state_std(s: float) -> float:
    """Deviation of a state at noise level `s` if that of clean states is 1: 1 at the levels 1 and 0."""
    return math.sqrt((1 - s) ** 2 + s**2)


def multistep(s_before: float, s: float, s_next: float) -> StepCoefficients:
    """DPM-Solver++ (2M, midpoint; arXiv 2211.01095, algorithm 2) from `s` to `s_next`, after a step from `s_before`.

    With alpha = 1 - s, sigma = s and lambda = log(alpha / sigma). Where lambda is infinite at one of the levels, it is
    the first-order step, which for rectified flow is Euler's.
    """
    if s_before >= 1 or s_next <= 0:
        return step_coefficients("ode", s, s_next, 0.0, s)
    before, here, after = (math.log((1 - level) / level) for level in (s_before, s, s_next))
    extrapolated = (after - here) / (2 * (here - before))
    pull = (1 - s_next) - s_next * (1 - s) / s
    # The clean state is taken as (1 + extrapolated) * (x - s * v) - extrapolated * the one before.
    own = pull * (1 + extrapolated)
    return StepCoefficients(s_next / s + own, -s * own, c=-pull * extrapolated)


def grid_levels(schedule: Schedule, sigmas: Sequence[float]) -> list[float]:
    """The policy's noise levels [grid_steps + 1] as kernels need them: falling, the first exactly 1 and the last
    exactly 0 where that is meant. The last step, which is deterministic, may stay where it is.

    Raises InputError if they don't fall, or there are more or fewer than the schedule has.
    """
    if len(sigmas) != schedule.grid_steps + 1:
        raise InputError(
            f"schedule.steps is {schedule.grid_steps}, for which this model's scheduler has {len(sigmas)} noise levels "
            "instead of one more; take another number"
        )
    levels = [float(sigma) for sigma in sigmas]
    for place, end in ((0, 1.0), (-1, 0.0)):
        if abs(levels[place] - end) <= ROUNDING:
            levels[place] = end
    for step, (level, following) in enumerate(pairwise(levels)):
        falls = level > following or (level == following and step == schedule.grid_steps - 1)
        if not (level <= 1 and falls and following >= 0):
            raise InputError(
                f"noise levels must fall from 1 to 0, and step {step} of {schedule.grid_steps} goes from {level:g} to "
                f"{following:g}; take fewer schedule.steps, or another policy.shift"
            )
    return levels


def relative_noise(schedule: Schedule, sigmas: Sequence[float]) -> list[float]:
    """Noise of every step over the mean of what its kernel would have at all steps of the grid but the last."""
    grid = grid_levels(schedule, sigmas)

    def std(step: Step, level: int) -> float:
        return step_coefficients(step.kernel, grid[level], grid[level + 1], step.eta, grid[1]).std

    noise = []
    for level, step in zip(schedule.levels, schedule.steps, strict=False):
        everywhere = [std(step, other) for other in range(schedule.grid_steps - 1)]
        noise.append(std(step, int(level)) / (sum(everywhere) / len(everywhere)) if step.stochastic else 0.0)
    return noise


@dataclass(frozen=True)
class CoefficientTable:
    """Coefficients of all steps of a schedule, each float32 [steps]."""

    sigma: torch.Tensor
    """Noise level that the step starts from."""
    a: torch.Tensor
    b: torch.Tensor
    std: torch.Tensor
    c: torch.Tensor
    """Coefficient of the clean state predicted one step before; 0 except for multistep solvers."""
    length: torch.Tensor
    """Fall of the noise level, -ds."""

    @classmethod
    def of(cls, schedule: Schedule, sigmas: Sequence[float]) -> "CoefficientTable":
        """The coefficients of a schedule on the policy's noise levels [grid_steps + 1], which fall from 1 to 0.

        Raises InputError if they don't fall, or don't fit the schedule.
        """
        grid = grid_levels(schedule, sigmas)
        levels, taken = [grid[level] for level in schedule.levels], []
        for i, step in enumerate(schedule.steps):
            if step.kernel == "dpm" and i and schedule.steps[i - 1].kernel == "dpm":
                taken.append(multistep(*levels[i - 1 : i + 2]))
            else:
                taken.append(step_coefficients(step.kernel, levels[i], levels[i + 1], step.eta, grid[1]))
        tables = {name: torch.tensor([getattr(step, name) for step in taken]) for name in ("a", "b", "std", "c")}
        lengths = [s - s_next for s, s_next in pairwise(levels)]
        return cls(torch.tensor(levels[:-1]), **tables, length=torch.tensor(lengths))

    def mean(self, step: torch.Tensor | int, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Mean of the next state, float32 like `x` [rows, ...]; `step` is one number or int64 [rows].

        A multistep solver adds `c` times the clean state predicted before.
        """
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

    def drawn_around(self, step: torch.Tensor, child: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The mean that a child was drawn around with this noise, float32 [rows, ...]."""
        return child.float() - _per_row(self.std, step, noise) * noise

    def kl(self, step: torch.Tensor, mean: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """KL divergence of two transitions that differ in their means, averaged over dimensions, float32 [rows]."""
        std = _per_row(self.std, step, mean)
        return ((mean - reference) ** 2 / (2 * std**2)).flatten(1).mean(dim=1)


def _per_row(table: torch.Tensor, step: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
    """Entries of `table` for each row of `like`, shaped to broadcast over it."""
    values = table.to(like.device)[step]
    return values.reshape(-1, *[1] * (like.dim() - 1)) if values.dim() else values
