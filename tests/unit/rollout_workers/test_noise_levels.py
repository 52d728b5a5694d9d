"""Noise levels as schedulers give them, rounding and all, against kernels written out in exact arithmetic."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.schedule import Kernel, Schedule, Step, tree_schedule
from branchgrpo.rollout_workers.kernels import CoefficientTable, relative_noise
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

ETAS = {"dance": (0.3, 1.0), "flow": (0.7, 1.0), "cps": (0.5, 1.0), "ddim": (0.5, 1.0)}


def flow_levels(shift: float, steps: int, own: bool) -> list[float]:
    """As FLUX (`own` even levels) and SD3 get them, the latter shifted twice."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps) if own else None)
    return [float(level) for level in scheduler.sigmas]


SHIFTS = [n / 100 for n in range(1, 1201) if n % 25 == 0 or flow_levels(n / 100, 2, own=True)[0] != 1]
"""Those where float32 makes the first level 0.9999999 or 1.0000001, and some others."""


def ideal_levels(shift: float, steps: int) -> np.ndarray:
    """What `flow_levels` of FLUX's would be without rounding."""
    even = [Fraction(steps - i, steps) for i in range(steps + 1)]
    exact = Fraction(shift).limit_denominator(100)
    return np.array([float(exact * s / (1 + (exact - 1) * s)) for s in even])


def published_std(kernel: Kernel, eta: float, levels: np.ndarray) -> np.ndarray:
    """Standard deviation of a kernel's noise as its authors write it, in float64, of all steps but the last."""
    s, s_next = levels[:-2], levels[1:-1]
    if kernel == "dance":
        return eta * np.sqrt(s - s_next)
    if kernel == "flow":
        return eta * np.sqrt(s / (1 - np.array([s_next[0], *s[1:]]))) * np.sqrt(s - s_next)
    if kernel == "cps":
        return s_next * np.sin(eta * np.pi / 2)
    size_squared = (1 - levels) ** 2 + levels**2
    shares = (1 - levels) ** 2 / size_squared
    a, a_next = shares[:-2], shares[1:-1]
    return eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next)) * np.sqrt(size_squared[1:-1])


def every_kernel() -> Iterator[tuple[Kernel, float]]:
    return ((kernel, eta) for kernel, etas in ETAS.items() for eta in etas)


def tables(levels: Sequence[float], kernel: Kernel, eta: float) -> CoefficientTable:
    return CoefficientTable.of(tree_schedule(len(levels) - 1, kernel=kernel, eta=eta, roots=2), levels)


def assert_finite(table: CoefficientTable) -> None:
    assert torch.isfinite(torch.stack([table.sigma, table.a, table.b, table.std, table.c])).all()


@pytest.mark.parametrize("steps", [2, 16])
def test_every_shift_gives_the_noise_of_exact_levels(steps: int) -> None:
    assert len(SHIFTS) > 128
    for shift in SHIFTS:
        rounded, ideal = flow_levels(shift, steps, own=True), ideal_levels(shift, steps)
        for kernel, eta in every_kernel():
            table = tables(rounded, kernel, eta)
            assert_finite(table)
            assert float(table.sigma[0]) == 1
            np.testing.assert_allclose(table.std[:-1], published_std(kernel, eta, ideal), rtol=1e-4)


def test_schedulers_that_shift_twice_give_finite_steps_too() -> None:
    for shift, (kernel, eta) in product(SHIFTS, every_kernel()):
        table = tables(flow_levels(shift, 5, own=False), kernel, eta)
        assert_finite(table)
        assert float(table.sigma[0]) == 1
        assert float(table.std[:-1].min()) > 0
        assert float(table.std.max()) < 100


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddim_with_all_its_noise_is_defined(spacing: str, zero_snr: bool) -> None:
    for steps in (2, 3, 10, 21, 50, 128, 333, 499, 999):
        scheduler = DDIMScheduler(timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr, set_alpha_to_one=False)
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) != steps:  # diffusers' own rounding
            continue
        shares = [*scheduler.alphas_cumprod[scheduler.timesteps].double(), scheduler.final_alpha_cumprod.double()]
        levels = [float((1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())) for a in shares]
        for eta in (0.5, 1.0):
            assert_finite(tables(levels, "ddim", eta))


def test_new_and_old_noise_of_cps_and_ddim_add_up() -> None:
    """a * x + b * v = (1 - s') * x0 + kept * eps, and kept^2 + std^2 = s'^2, also with eta 1."""
    levels = flow_levels(1.32, 20, own=True)
    for kernel, eta in product(("cps", "ddim"), (1e-3, 0.5, 1 - 2**-53, 1.0)):
        table = tables(levels, kernel, eta)
        for i, (_, s_next) in enumerate(pairwise(levels[:-1])):
            kept = float(table.a[i]) - (1 - s_next)
            assert kept >= -1e-7
            assert kept**2 + float(table.std[i]) ** 2 == pytest.approx(s_next**2, rel=1e-5)


def test_multistep_solver_is_finite_for_every_shift() -> None:
    for shift, steps, own in product(SHIFTS, (4, 20), (True, False)):
        schedule = Schedule((Step("dance", 0.3, children=2, trained=True), *[Step("dpm")] * (steps - 1)))
        assert_finite(CoefficientTable.of(schedule, flow_levels(shift, steps, own)))
        whole = Schedule(tuple([Step("dpm")] * steps))
        assert_finite(CoefficientTable.of(whole, flow_levels(shift, steps, own)))


def test_weights_by_noise_see_the_same_levels() -> None:
    schedule = tree_schedule(16, kernel="flow", eta=0.7, roots=2)
    levels = flow_levels(1.18, 16, own=True)
    assert levels[0] not in (0.0, 1.0)
    noise = relative_noise(schedule, levels)
    std = CoefficientTable.of(schedule, levels).std[:-1].double()
    assert noise[:-1] == pytest.approx((std / std.mean()).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "levels", [[1.0, 0.5, 0.5, 0.0], [1.0, 0.4, 0.6, 0.0], [1.0, float("nan"), 0.3, 0.0], [1.2, 0.6, 0.3, 0.0]]
)
def test_levels_that_do_not_fall_are_refused(levels: list[float]) -> None:
    with pytest.raises(InputError, match="noise levels must fall from 1 to 0, and step . of 3 goes from"):
        tables(levels, "dance", 0.5)
