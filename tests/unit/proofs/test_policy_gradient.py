"""The estimator is the policy gradient: its mean against an exact derivative, for sequential and branched schedules.

Data are Gaussian, the reward is quadratic and the parameters enter linearly, one for each step, so the expected reward
follows from exact moments, and its derivatives from automatic differentiation. Parameters are perturbed one tree at a
time: the gradient with respect to a prompt's own parameters is that tree's estimate. No std, clip, KL or pruning; each
depth's edges are averaged, depths are added up, and log-probabilities, which are averages over D dimensions, are
multiplied by D.

Seeds are fixed. Bounds are Z standard errors of the mean over trees: a number crosses its bound by chance with
probability 5.7e-7, and fewer than 500 are compared.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from branchgrpo.benchmarks.support.gaussian import GaussianPolicy, moments
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.fusion import fuse
from branchgrpo.learner.rows import micro_batches, pick_rows
from branchgrpo.proto.schedule import Kernel, Schedule, tree_schedule
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import Task, Tree
from branchgrpo.rollout_workers.kernels import CoefficientTable
from branchgrpo.rollout_workers.worker import RolloutWorker
from gradients import edge_logprobs

MEAN, COVARIANCE = (0.5, -0.3), ((1.0, 0.3), (0.3, 0.5))
STEPS, D, Z = 6, 2, 5.0
LINEAR, QUADRATIC = torch.tensor([1.0, 1.2]).double(), torch.tensor([[0.2, 0.05], [0.05, -0.1]]).double()
TREE = {0: 2, 2: 3}


def reward(x: np.ndarray) -> np.ndarray:
    """Of states [..., 2]."""
    return x @ LINEAR.numpy() + np.einsum("...i,ij,...j", x, QUADRATIC.numpy(), x)


def exact_gradient(schedule: Schedule) -> np.ndarray:
    """Derivative of the expected reward with respect to the parameter of each step, float64 [steps]."""
    policy = GaussianPolicy(MEAN, COVARIANCE, STEPS, 1)
    table = CoefficientTable.of(schedule, policy.sigmas(STEPS))
    theta = torch.zeros(STEPS, dtype=torch.float64, requires_grad=True)
    coefficients = [tuple(float(values[i]) for values in (table.a, table.b, table.std)) for i in range(STEPS)]
    mean, covariance = moments(policy, coefficients.__getitem__, STEPS, theta)[-1]
    expected = LINEAR @ mean + mean @ QUADRATIC @ mean + (QUADRATIC * covariance).sum()
    return torch.autograd.grad(expected, theta)[0].numpy()


@dataclass
class Sampled:
    policy: GaussianPolicy
    trees: list[Tree]
    values: list[np.ndarray]
    """Of each tree: the mean reward of the leaves below every node."""


def sampled(schedule: Schedule, trees: int, seed: int = 3) -> Sampled:
    policy = GaussianPolicy(MEAN, COVARIANCE, STEPS, trees)
    prompts = tuple(str(i) for i in range(trees))
    worker = RolloutWorker(policy, RolloutSettings(max_batch_rows=10**9, decode_batch=10**9))
    grown = [Tree(i, prompt, schedule) for i, prompt in enumerate(prompts)]
    for part in worker.sample(Task(1, tuple(range(trees)), prompts, schedule, seed)):
        grown[part.tree].add(part)
    leaves = range(schedule.first_node[-2], schedule.nodes)
    states = np.array([[tree.state(leaf).double().numpy() for leaf in leaves] for tree in grown])
    values = [fuse(rewards, tree.logprobs, schedule) for tree, rewards in zip(grown, reward(states), strict=True)]
    return Sampled(policy, grown, values)


def estimates(of: Sampled, baseline: bool) -> np.ndarray:
    """Each tree's estimate of the gradient, float64 [trees, steps]."""
    schedule = of.trees[0].schedule
    weights = edge_weights(schedule, "depth") * len(schedule.trained_depths)
    credits = []
    for values in of.values:
        means = np.bincount(schedule.depth, weights=values) / schedule.nodes_per_depth
        credits.append(Credit(values - means[schedule.depth] if baseline else values, weights))
    rows = pick_rows(of.trees, credits, skip_zero_advantage=False)
    (batch,) = micro_batches(rows, of.trees, credits, rows=10**9)
    transitions = CoefficientTable.of(schedule, of.policy.sigmas(STEPS))
    logprobs = edge_logprobs(of.policy, transitions, batch)
    gain = (batch.weights.double() * batch.advantages.double() * logprobs.double() * D).sum()
    return torch.autograd.grad(gain, of.policy.network.theta)[0].numpy()


def strayed(of_trees: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """By how many standard errors of the mean over trees each number is off; 0 for one that is exact in every tree."""
    error = of_trees.std(axis=0, ddof=1) / math.sqrt(len(of_trees))
    off = np.abs(of_trees.mean(axis=0) - exact)
    return np.divide(off, error, out=np.where(off > 0, np.inf, 0.0), where=error > 0)


def schedules(kernel: Kernel) -> dict[str, Schedule]:
    return {
        "sequential": tree_schedule(STEPS, kernel=kernel, eta=0.7, roots=4),
        "tree": tree_schedule(STEPS, kernel=kernel, eta=0.7, splits=TREE, sibling_spread=4.0),
        "alike": tree_schedule(STEPS, kernel=kernel, eta=0.7, splits=TREE, sibling_spread=1.0),
        "independent": tree_schedule(STEPS, kernel=kernel, eta=0.7, splits={1: 4}, sibling_spread=math.inf),
        "window": tree_schedule(STEPS, kernel=kernel, eta=0.7, splits={1: 3}, sde_steps=[3], roots=2),
    }


@pytest.mark.parametrize("kernel", ["dance", "flow", "cps"])
@pytest.mark.parametrize("shape", ["sequential", "tree", "alike", "independent", "window"])
def test_the_estimator_is_the_policy_gradient(kernel: Kernel, shape: str) -> None:
    """Without a baseline exactly; with the mean of the depth as baseline, smaller by a known factor.

    A sample is part of its own baseline, and so are its siblings, whose noise correlates with its own.
    """
    schedule = schedules(kernel)[shape]
    trained = [i for i, step in enumerate(schedule.steps) if step.trained]
    exact = exact_gradient(schedule)[trained]
    of = sampled(schedule, 1200)
    plain = estimates(of, baseline=False)[:, trained]
    assert (strayed(plain, exact) < Z).all()
    assert (strayed(plain, 0 * exact) > 2 * Z).any()  # the bound is narrow enough to tell something

    correlation = 1 / (1 + schedule.sibling_spread**2)
    factors = []
    for step in trained:
        children, nodes = schedule.steps[step].children, schedule.nodes_per_depth[step + 1]
        factors.append(1 - (1 + (children - 1) * correlation) / nodes)
    with_baseline = estimates(of, baseline=True)[:, trained]
    assert (strayed(with_baseline, exact * factors) < Z).all()


@pytest.mark.parametrize("kernel", ["dance", "flow", "cps"])
def test_variance_at_equal_forward_passes(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    """A tree of six leaves against six sequential samples, each with its baseline's factor corrected (bootstrap over
    trees, 99.9 %): the tree's is smaller here, for every kernel."""
    costs = {}
    for shape in ("sequential", "tree"):
        schedule = schedules(kernel)[shape]
        if shape == "sequential":
            schedule = tree_schedule(STEPS, kernel=kernel, eta=0.7, roots=6)
        trained = [i for i, step in enumerate(schedule.steps) if step.trained]
        correlation = 1 / (1 + schedule.sibling_spread**2)
        factors = [
            1 - (1 + (schedule.steps[i].children - 1) * correlation) / schedule.nodes_per_depth[i + 1] for i in trained
        ]
        corrected = estimates(sampled(schedule, 1000), baseline=True)[:, trained] / factors
        rng, draws = np.random.default_rng(0), []
        for _ in range(2000):
            drawn = corrected[rng.integers(len(corrected), size=len(corrected))]
            draws.append(drawn.var(axis=0, ddof=1).sum() * schedule.forward_passes)
        costs[shape] = corrected.var(axis=0, ddof=1).sum() * schedule.forward_passes, np.array(draws)
    ratio = costs["tree"][0] / costs["sequential"][0]
    low, high = np.quantile(costs["tree"][1] / costs["sequential"][1], [0.0005, 0.9995])
    assert high < 1
    with capsys.disabled():
        print(f"\n{kernel}: variance x forward passes, tree / sequential: {ratio:.2f} [{low:.2f}, {high:.2f}]")
