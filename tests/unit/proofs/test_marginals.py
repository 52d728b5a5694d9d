"""The laws of samples: exact recursions for Gaussian data, and trees sampled by the worker against them.

Every statistical test has a fixed seed. A bound of Z standard errors is crossed by chance with the probability that is
named beside it.
"""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from branchgrpo.benchmarks.support.gaussian import GaussianPolicy, moments
from branchgrpo.proto.schedule import Kernel, Schedule, tree_schedule
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import Task, Tree
from branchgrpo.rollout_workers.kernels import CoefficientTable, step_coefficients
from branchgrpo.rollout_workers.worker import RolloutWorker
from scipy.stats import ks_2samp

MEAN, COVARIANCE = (2.0, -1.0), ((1.0, 0.3), (0.3, 0.5))
Z = 5.0
"""Two-sided probability 5.7e-7 for each number that is compared; some 300 are, which makes 2e-4 in all."""


@cache
def followed(kernel: Kernel, eta: float, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Exact moments of a sequential sample whose every step is of one kernel."""
    policy = GaussianPolicy(MEAN, COVARIANCE, steps, 1)
    sigmas = policy.sigmas(steps)

    def coefficients(step: int) -> tuple[float, float, float]:
        taken = step_coefficients(kernel, sigmas[step], sigmas[step + 1], eta, sigmas[1])
        return taken.a, taken.b, taken.std

    return moments(policy, coefficients, steps)


def closed_form(s: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of (1 - s) x0 + s eps."""
    mean, covariance = (torch.tensor(value, dtype=torch.float64) for value in (MEAN, COVARIANCE))
    return (1 - s) * mean, (1 - s) ** 2 * covariance + s**2 * torch.eye(2, dtype=torch.float64)


def worst_errors(kernel: Kernel, eta: float, steps: int, levels: list[float]) -> tuple[float, float]:
    """Largest error of a mean and of a covariance, at the noise levels asked for."""
    path, means, covariances = followed(kernel, eta, steps), [], []
    for s in levels:
        (mean, covariance), (true_mean, true_covariance) = path[round((1 - s) * steps)], closed_form(s)
        means.append(float((mean - true_mean).abs().max()))
        covariances.append(float((covariance - true_covariance).abs().max()))
    return max(means), max(covariances)


@pytest.mark.parametrize(("kernel", "eta"), [("ode", 0.0), ("dance", 0.3), ("dance", 0.9)])
def test_ode_and_dance_approach_the_closed_form_as_one_over_t(kernel: Kernel, eta: float) -> None:
    levels = [i / 50 for i in range(51)]
    errors = [worst_errors(kernel, eta, steps, levels) for steps in (200, 400, 800)]
    assert max(errors[-1]) < 0.01
    for one, half in pairwise(errors):
        assert half[1] / one[1] == pytest.approx(0.5, abs=0.06)
        if one[0] > 1e-9:  # Euler's mean is exact
            assert half[0] / one[0] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("eta", [0.7, 0.9])
def test_flow_approaches_it_though_its_first_step_is_too_wide(eta: float) -> None:
    """More slowly than 1/T: what the first steps did wrong is forgotten about as T to the power of -eta^2."""
    for levels in ([0.75], [0.5], [0.25], [0.05]):
        errors = [worst_errors("flow", eta, steps, levels)[1] for steps in (500, 1000, 2000)]
        for one, half in pairwise(errors):
            assert half < 0.8 * one
    _, covariance = followed("flow", eta, 4000)[1]
    assert torch.diagonal(covariance).tolist() == pytest.approx([1 + eta**4 / 4] * 2, abs=2e-3)


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_cps_keeps_the_mean_and_shrinks_the_variance(eta: float) -> None:
    """The limit is for data of variance 1: of the noise (1 + cos(pi eta / 2)) / 2 is left on the way."""
    limit, errors = (1 + math.cos(math.pi * eta / 2)) / 2, []
    for steps in (400, 800, 1600):
        policy = GaussianPolicy((2.0,), ((1.0,),), steps, 1)
        sigmas = policy.sigmas(steps)
        taken = [step_coefficients("cps", s, s_next, eta, sigmas[1]) for s, s_next in pairwise(sigmas)]
        mean, covariance = moments(policy, lambda i, taken=taken: (taken[i].a, taken[i].b, taken[i].std), steps)[-1]
        errors.append((abs(float(mean) - 2.0), abs(float(covariance) - limit)))
    assert max(errors[-1]) < 0.01
    for one, half in pairwise(errors):
        assert half[1] < 0.75 * one[1]


# By sampling ----------------------------------------------------------------------------------------------------------


def grown(schedule: Schedule, trees: int, seed: int = 5) -> list[Tree]:
    policy = GaussianPolicy(MEAN, COVARIANCE, schedule.grid_steps, trees)
    prompts = tuple(str(i) for i in range(trees))
    worker = RolloutWorker(policy, RolloutSettings(max_batch_rows=10**9, decode_batch=10**9))
    sampled = [Tree(i, prompt, schedule) for i, prompt in enumerate(prompts)]
    for part in worker.sample(Task(1, tuple(range(trees)), prompts, schedule, seed)):
        sampled[part.tree].add(part)
    return sampled


def states(trees: list[Tree], nodes: range) -> np.ndarray:
    """float64 [trees, nodes, 2]."""
    return np.array([[tree.state(node).double().numpy() for node in nodes] for tree in trees])


def leaves_of(schedule: Schedule) -> range:
    return range(schedule.first_node[-2], schedule.nodes)


@pytest.mark.parametrize("kernel", ["dance", "flow", "cps"])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_a_leaf_of_a_tree_has_the_law_of_a_sequential_sample(kernel: Kernel, spread: float) -> None:
    """Mean and covariance against the recursion, with standard errors between trees (leaves of a tree are alike), and
    a two-sample test of one leaf of each tree against sequential samples."""
    eta, trees = 0.6, 800
    schedule = tree_schedule(8, kernel=kernel, eta=eta, splits={0: 2, 2: 3}, sibling_spread=spread)
    policy = GaussianPolicy(MEAN, COVARIANCE, 8, 1)
    table = CoefficientTable.of(schedule, policy.sigmas(8))
    coefficients = [tuple(float(values[i]) for values in (table.a, table.b, table.std)) for i in range(8)]
    mean, covariance = (moment.numpy() for moment in moments(policy, coefficients.__getitem__, 8)[-1])
    leaves = states(grown(schedule, trees), leaves_of(schedule))
    centred = leaves - mean
    for per_tree, exact in (
        (leaves.mean(axis=1), mean),
        (np.einsum("tli,tlj->tij", centred, centred) / leaves.shape[1], covariance),
    ):
        error = per_tree.std(axis=0, ddof=1) / math.sqrt(trees)
        assert (np.abs(per_tree.mean(axis=0) - exact) < Z * error).all()
    sequential = tree_schedule(8, kernel=kernel, eta=eta, roots=2, sibling_spread=spread)
    others = states(grown(sequential, 400, seed=6), leaves_of(sequential)).reshape(-1, 2)
    one_each = leaves[np.arange(trees), np.arange(trees) % leaves.shape[1]]
    for direction in ((1, 0), (0, 1), (1, 1), (1, -1)):
        # 24 such tests: one of them falls below by chance with probability 2.4e-4.
        assert ks_2samp(one_each @ direction, others @ direction).pvalue > 1e-5


@pytest.mark.parametrize("children", [2, 3, 4])
@pytest.mark.parametrize("spread", [1.0, 4.0, math.inf])
def test_children_of_one_parent_correlate_as_they_should(children: int, spread: float) -> None:
    schedule = tree_schedule(4, kernel="dance", eta=0.6, splits={1: children}, sibling_spread=spread)
    trees = grown(schedule, 1500)
    table = CoefficientTable.of(schedule, GaussianPolicy(MEAN, COVARIANCE, 4, 1).sigmas(4))
    policy = GaussianPolicy(MEAN, COVARIANCE, 4, 1)
    slope, offset = policy.linear_velocity(0.75)
    parents = torch.from_numpy(states(trees, range(1, 2)))
    means = float(table.a[1]) * parents + float(table.b[1]) * (parents @ slope.T + offset)
    noise = (states(trees, range(2, 2 + children)) - means.numpy()) / float(table.std[1])
    expected = 0.0 if math.isinf(spread) else 1 / (1 + spread**2)
    count = noise.shape[0] * 2
    for i in range(children):
        assert abs(noise[:, i].var() - 1) < Z * math.sqrt(2 / count)
        for j in range(i):
            assert abs((noise[:, i] * noise[:, j]).mean() - expected) < Z * math.sqrt((1 + expected**2) / count)
