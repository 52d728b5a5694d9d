"""What keeps updates near the policy that sampled, against the formulas of its papers."""

import math

import numpy as np
import pytest
import torch
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.learner import Learner
from branchgrpo.learner.objective import means_logprobs, predicted_means
from branchgrpo.learner.rows import micro_batches, pick_rows
from branchgrpo.learner.trust_region import edge_objective, masked_objective, sampled_noise
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.schedule import Kernel, tree_schedule
from branchgrpo.rollout_workers.kernels import CoefficientTable
from branchgrpo.rollout_workers.policies.base import Policy, load_weights
from branchgrpo.rollout_workers.policies.load import load_policy
from gradients import Sample, first_moments, guarded_gain, masked_gain, naive_gradient, update
from support import Settings
from torch.distributions import Normal

SEED = 7
"""That of the trees of `sample`."""
REGIONS = {"guard": (guarded_gain, "clip_range", 1e-3), "divergence": (masked_gain, "divergence_limit", 1e-2)}
"""An edge's gain by the formula of each region's paper, and the setting that bounds it, with a value for the test."""


@pytest.mark.parametrize("kernel", ["dance", "flow", "cps"])
@pytest.mark.parametrize("spread", [0.0, 4.0, math.inf])
def test_the_means_that_were_sampled_around_are_found_again(
    tiny_policy: Policy, sample: Sample, kernel: Kernel, spread: float
) -> None:
    schedule = tree_schedule(6, kernel=kernel, eta=0.5, roots=2, splits={1: 2, 3: 3}, sibling_spread=spread)
    trees = sample(tiny_policy, schedule)
    transitions = CoefficientTable.of(schedule, tiny_policy.sigmas(6))
    everything = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))] * len(trees)
    for batch in micro_batches(pick_rows(trees, everything), trees, everything, rows=17):
        with torch.no_grad():
            means = predicted_means(tiny_policy.velocity, transitions, batch)[batch.parents]
        noise = sampled_noise(batch, SEED, 1, schedule)
        found = transitions.drawn_around(batch.steps[batch.parents], batch.children, noise)
        torch.testing.assert_close(found, means, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("kernel", ["dance", "flow"])
def test_objective_and_gradient_are_those_of_the_plain_formula(
    run_settings: Settings, sample: Sample, region: str, kernel: Kernel
) -> None:
    """In float64, by autograd, over means that have moved at random."""
    gain, limit, bound = REGIONS[region]
    settings = run_settings({"learner.trust_region": region, "seed": SEED, f"learner.{limit}": bound})
    policy, schedule = load_policy(settings.policy), tree_schedule(5, kernel=kernel, eta=0.7, splits={0: 2, 2: 3})
    trees, rng = sample(policy, schedule), np.random.default_rng(0)
    transitions = CoefficientTable.of(schedule, policy.sigmas(5))
    credits = [Credit(rng.normal(size=schedule.nodes), edge_weights(schedule, "edge")) for _ in trees]
    (batch,) = micro_batches(pick_rows(trees, credits), trees, credits, rows=999)
    with torch.no_grad():
        old = predicted_means(policy.velocity, transitions, batch)
    sizes = torch.linspace(0.001, 0.1, len(old)).reshape(-1, *[1] * (old.ndim - 1))
    new = (old + sizes * torch.from_numpy(rng.normal(size=old.shape)).float()).requires_grad_()
    objective = edge_objective(settings, 1, schedule, transitions, batch, new, means_logprobs(transitions, batch, new))
    objective.loss.backward()

    grid, exact, losses = policy.sigmas(5), new.detach().double().requires_grad_(), []
    for edge, row in enumerate(batch.parents.tolist()):
        step = int(batch.steps[row])
        std = transitions.std[step].double()
        now, then = Normal(exact[row], std), Normal(old[row].double(), std)
        gained = gain(
            now, then, batch.children[edge], float(batch.advantages[edge]), grid[step] - grid[step + 1], bound
        )
        losses.append(-batch.weights[edge] * gained)
    torch.stack(losses).sum().backward()
    assert objective.loss.item() == pytest.approx(sum(loss.item() for loss in losses), rel=1e-4)
    torch.testing.assert_close(new.grad.double(), exact.grad, atol=1e-4 * float(exact.grad.abs().max()), rtol=1e-3)
    free = len(objective.clipped) - int(objective.clipped.sum())
    assert 5 < free < len(objective.clipped) - 5


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_second_update_has_the_gradient_of_a_naive_loop(
    run_settings: Settings, sample: Sample, region: str, lora: bool
) -> None:
    """The first one moves the weights. The naive loop takes old means from the policy that sampled."""
    gain, limit, _ = REGIONS[region]
    settings = run_settings(
        {
            "learner.trust_region": region,
            "seed": SEED,
            f"learner.{limit}": 1e-4,
            "learner.lora": {"rank": 2} if lora else None,
            "learner.optimizer": {"learning_rate": 1e-2, "betas": [0.0, 0.9], "gradient_clipping": 0.0},
        }
    )
    sampler = load_policy(settings.policy)
    learner = Learner(load_policy(settings.policy), settings)
    trees = sample(sampler, settings.schedule.build(), prompts=("123", "45"))
    first = update(learner, trees)
    assert first.clip_fraction == 0
    now = load_policy(settings.policy)
    if lora:
        torch.manual_seed(settings.seed)
        now.add_lora(settings.learner.lora)
    load_weights(now.network, learner.weights())
    expected = naive_gradient(now, trees, 1e-4, sampler, gain_since=gain)
    second = update(learner, trees)
    assert 0 < second.clip_fraction < 1
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    for name, moment in first_moments(learner).items():  # with beta1 = 0 it is the gradient
        torch.testing.assert_close(moment, expected[name], atol=1e-3 * scale, rtol=1e-3)


def test_masked_objective_by_hand() -> None:
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.5])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    divergences = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.05])
    logprobs = ratios.log().requires_grad_()
    objective = masked_objective(logprobs, torch.zeros(5), advantages, torch.full((5,), 0.2), divergences, limit=0.1)
    assert objective.clipped.tolist() == [True, False, False, True, False]
    assert objective.loss.item() == pytest.approx(-0.2 * (-1.5 + 0.5 + 1.5))
    objective.loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([0, 0.3, -0.1, 0, -0.3])


def test_moves_need_states_as_they_were_drawn(run_settings: Settings) -> None:
    with pytest.raises(InputError, match="learner.trust_region is 'guard' with rollout.latents_precision 'bfloat16'"):
        run_settings({"learner.trust_region": "guard", "rollout.latents_precision": "bfloat16"})
