"""The learner's log-probabilities and gradients against independent computations."""

import math

import numpy as np
import pytest
import torch
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.learner import Learner
from branchgrpo.learner.objective import clipped_objective
from branchgrpo.learner.rows import micro_batches, pick_rows
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.methods import METHODS
from branchgrpo.proto.packed_tensor import ForwardCache
from branchgrpo.proto.schedule import Kernel, tree_schedule
from branchgrpo.proto.settings import PolicySettings, RolloutSettings
from branchgrpo.rollout_workers.kernels import CoefficientTable
from branchgrpo.rollout_workers.policies.base import Policy, load_weights
from branchgrpo.rollout_workers.policies.load import load_policy
from gradients import Sample, assert_same_gradient, edge_logprobs, first_moments, naive_gradient, update
from support import RECIPES, Settings


@pytest.mark.parametrize("kernel", ["dance", "flow", "cps"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_unchanged_weights_give_ratio_one_in_float32(
    tiny_policy: Policy, sample: Sample, kernel: Kernel, stored: str
) -> None:
    schedule = tree_schedule(6, kernel=kernel, eta=0.5, splits={0: 2, 2: 3})
    trees = sample(tiny_policy, schedule, rollout=RolloutSettings(max_batch_rows=4, latents_precision=stored))
    transitions = CoefficientTable.of(schedule, tiny_policy.sigmas(6))
    everything = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))] * len(trees)
    edges = 0
    for batch in micro_batches(pick_rows(trees, everything), trees, everything, rows=17):
        with torch.no_grad():
            logprobs = edge_logprobs(tiny_policy, transitions, batch)
        assert (logprobs - batch.logprobs).abs().max() < 1e-5
        edges += len(logprobs)
    assert edges == len(trees) * schedule.trained_edges


@pytest.mark.parametrize("kernel", ["dance", "flow", "cps"])
def test_unchanged_weights_give_ratio_near_one_in_bfloat16(sample: Sample, kernel: Kernel) -> None:

    from branchgrpo.proto.recipe import load_recipe

    demo = load_recipe(RECIPES / "glyphs.yaml")
    policy = load_policy(demo.policy.model_copy(update={"precision": "bfloat16", "device": "cpu"}))
    schedule = tree_schedule(demo.schedule.steps, kernel=kernel, eta=0.7, splits=demo.schedule.splits)
    trees = sample(policy, schedule, rollout=RolloutSettings(max_batch_rows=32), prompts=("123", "456"))
    transitions = CoefficientTable.of(schedule, policy.sigmas(demo.schedule.steps))
    everything = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))] * 2
    for batch in micro_batches(pick_rows(trees, everything), trees, everything, rows=50):
        with torch.no_grad():
            logprobs = edge_logprobs(policy, transitions, batch)
        assert (logprobs - batch.logprobs).abs().max() < demo.learner.clip_range / 10


@pytest.mark.parametrize("shift", [1.18, 1.32])
@pytest.mark.parametrize(("kernel", "eta"), [("dance", 0.3), ("flow", 0.7), ("cps", 1.0), ("ddim", 1.0)])
def test_sampler_and_learner_see_the_same_noise_levels(
    policy_settings: PolicySettings, sample: Sample, shift: float, kernel: Kernel, eta: float
) -> None:
    """FLUX's first level with these shifts is 0.9999999 and 1.0000001."""
    policy = load_policy(policy_settings.model_copy(update={"shift": shift}))
    sigmas = policy.sigmas(6)
    assert sigmas[0] != 1
    schedule = tree_schedule(6, kernel=kernel, eta=eta, splits={0: 2})
    trees = sample(policy, schedule, prompts=("123",))
    transitions = CoefficientTable.of(schedule, sigmas)
    everything = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))]
    (batch,) = micro_batches(pick_rows(trees, everything), trees, everything, rows=99)
    with torch.no_grad():
        logprobs = edge_logprobs(policy, transitions, batch)
    assert (logprobs - batch.logprobs).abs().max() < 1e-5
    assert max(float(trees[0].state(node).abs().max()) for node in range(schedule.nodes)) < 20


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gradient_equals_a_naive_loop_over_edges(
    run_settings: Settings, sample: Sample, stage: int, lora: bool
) -> None:
    changes = {
        "learner.zero_stage": stage,
        "learner.updates_per_iteration": 2,
        "learner.lora": {"rank": 2} if lora else None,
    }
    settings = run_settings(changes)
    policy = load_policy(settings.policy)
    if lora:
        torch.manual_seed(settings.seed)
        policy.add_lora(settings.learner.lora)
    trees = sample(policy, settings.schedule.build(), prompts=("123", "45"))
    expected = naive_gradient(policy, trees, settings.learner.clip_range)
    learner = Learner(load_policy(settings.policy), settings)
    stats = update(learner, trees)
    assert stats.rows > 2 * settings.learner.rows_per_micro_batch
    assert stats.logprob_abs_diff < 1e-5
    assert_same_gradient(learner, expected, 1e-4)
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in expected.values()))
    assert stats.gradient_norm == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"nft"}))
def test_every_method_has_ratio_one_and_the_naive_gradient(
    run_settings: Settings, sample: Sample, small_methods: dict[str, dict], method: str
) -> None:
    settings = run_settings(
        {
            "schedule": {"method": method, **small_methods[method]},
            "advantage.normaliser": "group",
            "learner.skip_zero_advantage": False,
        }
    )
    schedule = settings.schedule.build()
    policy = load_policy(settings.policy)
    seen = {False: 0, True: 0}

    def count(module: object, args: object, kwargs: dict) -> None:
        seen[torch.is_grad_enabled()] += len(kwargs["hidden_states"])

    with policy.network.register_forward_pre_hook(count, with_kwargs=True):
        trees = sample(policy, schedule, prompts=("123", "45"))
    assert seen == {False: 2 * schedule.forward_passes, True: 0}
    expected = naive_gradient(policy, trees, settings.learner.clip_range)
    learner = Learner(load_policy(settings.policy), settings)
    with learner.policy.network.register_forward_pre_hook(count, with_kwargs=True):
        stats = update(learner, trees)
    assert seen[True] == stats.rows == 2 * schedule.rows
    assert stats.edges == 2 * schedule.trained_edges
    assert stats.logprob_abs_diff < 1e-5
    assert_same_gradient(learner, expected, 1e-4)


@pytest.mark.parametrize(("stage", "scale"), [(0, "exact"), (3, "exact"), (0, "flow_grpo")])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_kl_term_is_that_of_torch_s_distributions(
    run_settings: Settings, sample: Sample, stage: int, scale: str, lora: bool
) -> None:
    """The first step moves the weights; the gradient of the second has a KL to where they were."""
    changes = {"learner.zero_stage": stage, "learner.lora": {"rank": 2} if lora else None, "learner.kl_weight": 50.0}
    changes["learner.kl_scale"] = scale
    settings = run_settings(
        {**changes, "learner.optimizer": {"learning_rate": 1e-2, "betas": [0.0, 0.9], "gradient_clipping": 0.0}}
    )
    reference = load_policy(settings.policy)
    learner = Learner(load_policy(settings.policy), settings)
    trees = sample(reference, settings.schedule.build(), prompts=("123", "45"))
    first = update(learner, trees)
    assert first.kl == pytest.approx(0, abs=1e-9)
    assert first.reference_rows == first.rows
    now = load_policy(settings.policy)
    if lora:
        torch.manual_seed(settings.seed)
        now.add_lora(settings.learner.lora)
    load_weights(now.network, learner.weights())
    expected = naive_gradient(now, trees, settings.learner.clip_range, reference, 50.0, scale)
    second = update(learner, trees)
    assert second.kl > 1e-6
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, moment in first_moments(learner).items():  # with beta1 = 0 it is the gradient
        torch.testing.assert_close(moment, expected[name], atol=1e-4 * scale, rtol=1e-4)


def test_the_exact_kl_is_28_to_5_6_times_that_of_flow_grpo() -> None:
    """Over 10 steps at shift 3: their factor is the fall of the noise level."""
    shifted = [3 * s / (1 + 2 * s) for s in np.linspace(1, 0, 11)]
    times = 1 / CoefficientTable.of(METHODS["flow_grpo"](steps=10), shifted).length
    assert times[0].item() == pytest.approx(28)
    assert times[-2].item() == pytest.approx(5.6)
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("kernel", ["cps", "ddim"])
def test_the_scale_of_flow_grpo_is_for_its_own_noise(run_settings: Settings, kernel: Kernel) -> None:
    with pytest.raises(InputError, match=f"learner.kl_scale is 'flow_grpo' with the kernel '{kernel}'"):
        run_settings({"learner.kl_scale": "flow_grpo", "learner.kl_weight": 0.1, "schedule.kernel": kernel})


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_kept_graph_gives_the_same_gradient(run_settings: Settings, sample: Sample, stage: int, lora: bool) -> None:
    norms, moments = [], []
    for keep in (False, True):
        changes = {"learner.zero_stage": stage, "learner.lora": {"rank": 2} if lora else None}
        settings = run_settings(
            {**changes, "learner.keep_graph": keep, "learner.updates_per_iteration": 1, "prompts.per_iteration": 2}
        )
        learner = Learner(load_policy(settings.policy), settings)
        trees = sample(learner.policy, settings.schedule.build(), prompts=("1", "2"), kept=learner.kept_forwards)
        passes = 0

        def count(*_: object) -> None:
            nonlocal passes
            passes += 1

        with learner.policy.network.register_forward_pre_hook(count):
            stats = update(learner, trees)
        assert (passes == 0) == keep
        assert stats.rows == 2 * settings.schedule.build().rows
        assert not list((learner.kept_forwards or ForwardCache()).drain())
        norms.append(stats.gradient_norm)
        moments.append(first_moments(learner))
        if keep:
            assert stats.logprob_abs_diff == 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    scale = max(float(moment.abs().max()) for moment in moments[0].values())
    for name, moment in moments[0].items():
        torch.testing.assert_close(moments[1][name], moment, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("stage", [0, 1])
def test_gradients_are_clipped_to_the_norm_asked_for(run_settings: Settings, sample: Sample, stage: int) -> None:
    moments, norms = [], []
    for limit in (0.0, 1e-3):
        settings = run_settings({"learner.zero_stage": stage, "learner.optimizer.gradient_clipping": limit})
        learner = Learner(load_policy(settings.policy), settings)
        norms.append(
            update(learner, sample(learner.policy, settings.schedule.build(), prompts=("1", "2"))).gradient_norm
        )
        moments.append(first_moments(learner))
    assert norms[0] == norms[1] > 1e-3
    for name, moment in moments[0].items():
        torch.testing.assert_close(moments[1][name], moment * 1e-3 / norms[0], atol=1e-9, rtol=1e-3)


KEPT = {"learner.keep_graph": True, "learner.updates_per_iteration": 1, "prompts.per_iteration": 2}


@pytest.mark.parametrize(
    "changes", [{}, {"pruning.width": {"mode": "parent_top1"}}, KEPT], ids=["plain", "pruned", "kept graph"]
)
def test_skipping_zero_advantages_changes_no_gradient(
    run_settings: Settings, sample: Sample, changes: dict[str, object]
) -> None:
    moments, stats = [], []
    for skip in (True, False):
        settings = run_settings({**changes, "learner.skip_zero_advantage": skip})
        learner = Learner(load_policy(settings.policy), settings)
        trees = sample(learner.policy, settings.schedule.build(), prompts=("1", "2"), kept=learner.kept_forwards)
        trees[1].rewards["ocr"][:] = 0.25
        stats.append(update(learner, trees))
        moments.append(first_moments(learner).values())
    assert (stats[0].edges, stats[0].skipped_edges) == (stats[1].edges // 2, stats[1].edges // 2)
    assert stats[1].skipped_edges == 0
    for one, other in zip(*moments, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-4)


def test_clipped_objective_by_hand() -> None:
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    logprobs = ratios.log().requires_grad_()
    objective = clipped_objective(logprobs, torch.zeros(5), advantages, torch.full((5,), 0.2), clip_range=0.1)
    assert objective.loss.item() == pytest.approx(-0.2 * (2 + 1.1 - 1.5 + 0.5 - 0.9))
    assert objective.clipped.tolist() == [False, True, False, False, True]
    objective.loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.4, 0, 0.3, -0.1, 0])
