"""Kernels against their formulas as published, written out with score and x0, in float64."""

import math

import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.schedule import Kernel, tree_schedule
from branchgrpo.rollout_workers.kernels import CoefficientTable, state_std, step_coefficients
from diffusers import DDIMScheduler
from torch.distributions import Normal

SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.15, 0.0]


def published(kernel: Kernel, x: torch.Tensor, v: torch.Tensor, step: int, eta: float) -> tuple[torch.Tensor, float]:
    """Mean and standard deviation of the next state, as the methods' authors write them."""
    s, s_next = SIGMAS[step], SIGMAS[step + 1]
    ds = s_next - s
    x0 = x - s * v
    if kernel == "dance":
        score = -(x - (1 - s) * x0) / s**2
        return x + ds * v - 0.5 * eta**2 * score * ds, eta * math.sqrt(-ds)
    if kernel == "flow":
        std_t = eta * math.sqrt(s / (1 - (SIGMAS[1] if s == 1 else s)))
        mean = x * (1 + std_t**2 / (2 * s) * ds) + v * (1 + std_t**2 * (1 - s) / (2 * s)) * ds
        return mean, std_t * math.sqrt(-ds)
    std = s_next * math.sin(eta * math.pi / 2)
    return (1 - s_next) * x0 + math.sqrt(s_next**2 - std**2) * (x + (1 - s) * v), std


@pytest.mark.parametrize("kernel", ["dance", "flow", "cps"])
@pytest.mark.parametrize("step", range(4))
def test_stochastic_kernels_follow_the_published_formulas(kernel: Kernel, step: int) -> None:
    torch.manual_seed(0)
    x, v, child = torch.randn(3, 2, 6, 4, dtype=torch.float64).unbind()
    transitions = CoefficientTable.of(tree_schedule(5, kernel=kernel, eta=0.6, roots=2), SIGMAS)
    mean, std = published(kernel, x, v, step, 0.6)
    ours = transitions.mean(step, x, v)
    torch.testing.assert_close(ours, mean.float(), atol=1e-6, rtol=1e-5)
    assert float(transitions.std[step]) == pytest.approx(std, rel=1e-6)
    density = Normal(mean, std).log_prob(child).mean(dim=(1, 2))
    torch.testing.assert_close(transitions.logprob(step, child, ours), density.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_is_that_of_diffusers_in_its_own_coordinates(eta: float, prediction: str) -> None:
    """Theirs are ours over `size`, whose squares add up to 1; Euler's step is DDIM without noise."""
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    t = int(scheduler.timesteps[3])
    shares = scheduler.alphas_cumprod[[t, int(scheduler.timesteps[4])]].double()
    s, s_next = (shares.rsqrt().pow(2) - 1).sqrt().div((shares.rsqrt().pow(2) - 1).sqrt() + 1).tolist()
    torch.manual_seed(0)
    clean, noise, own = torch.randn(3, 2, 6, 4, dtype=torch.float64).unbind()
    a, b = shares[0].sqrt(), (1 - shares[0]).sqrt()
    predicted = noise if prediction == "epsilon" else a * noise - b * clean
    theirs = scheduler.step(predicted, t, a * clean + b * noise, eta=eta, variance_noise=own).prev_sample
    ours = step_coefficients("ddim" if eta else "ode", s, s_next, eta, s)
    x, v = (1 - s) * clean + s * noise, noise - clean
    torch.testing.assert_close(
        (ours.a * x + ours.b * v + ours.std * own) / state_std(s_next), theirs, atol=1e-6, rtol=1e-6
    )


def test_ode_is_euler() -> None:
    transitions = CoefficientTable.of(tree_schedule(5, kernel="dance", eta=0.6, roots=2), SIGMAS)
    x, v = torch.randn(2, 3, 8).unbind()
    assert transitions.std[4] == 0
    torch.testing.assert_close(transitions.mean(4, x, v), x - 0.15 * v)


def test_rows_of_different_steps_share_a_batch() -> None:
    transitions = CoefficientTable.of(tree_schedule(5, kernel="flow", eta=0.6, roots=2), SIGMAS)
    x, v, child = torch.randn(3, 4, 6, 2).unbind()
    steps = torch.tensor([3, 0, 2, 0])
    mean = transitions.mean(steps, x, v)
    logprob = transitions.logprob(steps, child, mean)
    for row, step in enumerate(steps.tolist()):
        alone = transitions.mean(step, x[row : row + 1], v[row : row + 1])
        torch.testing.assert_close(mean[row], alone[0])
        torch.testing.assert_close(logprob[row : row + 1], transitions.logprob(step, child[row : row + 1], alone))


@pytest.mark.parametrize("kernel", ["ode", "dance", "flow", "cps"])
def test_marginals_of_gaussian_data(kernel: Kernel) -> None:
    """Data N(m, 1) has the exact velocity; variances are followed exactly, step by step, without sampling.

    With c = (1 - s)^2 + s^2 the velocity of x is (s - (1 - s)) / c * (x - (1 - s) m) - m, so mean and variance obey a
    linear recursion. `ode` and `dance` come to variance 1 as 1/T, `cps` to its known limit (1 + cos(pi eta / 2)) / 2.
    """
    m, eta, errors = 2.0, 0.5, []
    for steps in (200, 400):
        sigmas = [1 - i / steps for i in range(steps + 1)]
        schedule = tree_schedule(
            steps,
            kernel="dance" if kernel == "ode" else kernel,
            eta=eta,
            roots=2,
            sde_steps=[] if kernel == "ode" else None,
        )
        table = CoefficientTable.of(schedule, sigmas)
        mean, variance = 0.0, 1.0
        for i, s in enumerate(sigmas[:-1]):
            slope = (2 * s - 1) / ((1 - s) ** 2 + s**2)
            offset = -slope * (1 - s) * m - m
            a, b, std = (float(values[i]) for values in (table.a, table.b, table.std))
            mean, variance = (a + b * slope) * mean + b * offset, (a + b * slope) ** 2 * variance + std**2
        limit = (1 + math.cos(math.pi * eta / 2)) / 2 if kernel == "cps" else 1.0
        errors.append((abs(mean - m), abs(variance - limit)))
    assert errors[1][0] < 0.02
    assert errors[1][1] < 0.02
    if kernel in ("ode", "dance"):
        assert errors[1][1] / errors[0][1] == pytest.approx(0.5, abs=0.1)


def test_sigmas_must_fit_the_schedule() -> None:
    with pytest.raises(InputError, match="schedule.steps is 4, for which this model's scheduler has 6 noise levels"):
        CoefficientTable.of(tree_schedule(4, kernel="dance", eta=0.6, roots=2), SIGMAS)
