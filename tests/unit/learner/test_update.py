"""The learner's log-probabilities, gradients and updates against independent computations."""

import math
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.learner import Learner
from branchgrpo.learner.objective import clipped_objective, edge_logprobs
from branchgrpo.learner.rows import micro_batches, pick_rows
from branchgrpo.proto.methods import METHODS
from branchgrpo.proto.packed_tensor import ForwardCache
from branchgrpo.proto.schedule import Kernel, tree_schedule
from branchgrpo.proto.settings import PolicySettings, RolloutSettings
from branchgrpo.proto.tree import Tree, Window
from branchgrpo.rollout_workers.kernels import CoefficientTable
from branchgrpo.rollout_workers.policies.base import Policy, load_weights, trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from deepspeed.utils import safe_get_full_optimizer_state
from support import RECIPES, Settings
from torch.distributions import Normal, kl_divergence

Sample = Callable[..., list[Tree]]


def update(learner: Learner, trees: list[Tree]):
    learner.accumulate(Window(1, trees, closes_update=True))
    return learner.step()


# ratio == 1 ---------------------------------------------------------------------------------------------------------


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


# Gradients ----------------------------------------------------------------------------------------------------------


def naive_mean(kernel: Kernel, eta: float, x: torch.Tensor, v: torch.Tensor, s: float, s_next: float, s_1: float):
    """Mean and deviation of the next state, from the formulas of DanceGRPO and Flow-GRPO."""
    ds = s_next - s
    if kernel == "dance":
        score = -(x - (1 - s) * (x - s * v)) / s**2
        return x + ds * v - 0.5 * eta**2 * score * ds, eta * math.sqrt(-ds)
    level = eta * math.sqrt(s / (1 - (s_1 if s == 1 else s)))
    mean = x * (1 + level**2 / (2 * s) * ds) + v * (1 + level**2 * (1 - s) / (2 * s)) * ds
    return mean, level * math.sqrt(-ds)


def naive_gradient(policy: Policy, trees: list[Tree], clip_range: float, reference=None, kl_weight: float = 0.0):
    """A loop over edges in plain torch, one forward and backward each, from the formulas of the kernels and GRPO."""
    parameters = trainable(policy.network)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for tree in trees:
        schedule = tree.schedule
        grid = policy.sigmas(schedule.grid_steps)
        sigmas = [grid[level] for level in schedule.levels]
        ends = [[] for _ in range(schedule.nodes)]  # leaf rewards below each node
        for leaf, reward in zip(range(schedule.first_node[-2], schedule.nodes), tree.rewards["ocr"], strict=True):
            at = leaf
            while at >= 0:
                ends[at].append(reward)
                at = int(schedule.parent[at])
        values = [float(np.mean(below)) for below in ends]
        for node in range(schedule.roots, schedule.nodes):
            step = int(schedule.depth[node]) - 1
            if not schedule.steps[step].trained:
                continue
            peers = [values[i] for i in range(schedule.nodes) if schedule.depth[i] == step + 1]
            advantage = (values[node] - np.mean(peers)) / np.std(peers, ddof=1) if len(peers) > 1 else 0.0
            s, s_next = sigmas[step], sigmas[step + 1]
            x = tree.state(int(schedule.parent[node]))[None]
            conditioning = {name: value[None] for name, value in policy.encode(tree.prompt).items()}

            taken, level = schedule.steps[step], torch.tensor([s])
            v = policy.velocity(x, level, conditioning)
            mean, std = naive_mean(taken.kernel, taken.eta, x, v, s, s_next, grid[1])
            logprob = Normal(mean, std).log_prob(tree.state(node)[None]).mean()
            ratio = torch.exp(logprob - tree.logprobs[node])
            gain = torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)
            loss = -gain
            if reference is not None:
                with torch.no_grad():
                    v = reference.velocity(x, level, conditioning)
                held, _ = naive_mean(taken.kernel, taken.eta, x, v, s, s_next, grid[1])
                loss = loss + kl_weight * kl_divergence(Normal(mean, std), Normal(held, std)).mean()
            loss = loss / (schedule.trained_edges * len(trees))
            for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                total[name] += gradient
    return total


def first_moments(learner: Learner) -> dict[str, torch.Tensor]:
    """AdamW's first moments; after one step they are (1 - beta1) times the gradient, for every ZeRO stage."""
    parameters = learner.engine._parameters
    if learner.settings.learner.zero_stage == 0:
        return {name: learner.engine.module.optimizer.state[p]["exp_avg"] for name, p in parameters.items()}
    return {name: safe_get_full_optimizer_state(p, "exp_avg") for name, p in parameters.items()}


def assert_same_gradient(learner: Learner, expected: dict[str, torch.Tensor], tolerance: float) -> None:
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    for name, moment in first_moments(learner).items():
        torch.testing.assert_close(moment / 0.1, expected[name], atol=tolerance * scale, rtol=tolerance)


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


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_kl_term_is_that_of_torch_s_distributions(
    run_settings: Settings, sample: Sample, stage: int, lora: bool
) -> None:
    """The first step moves the weights; the gradient of the second has a KL to where they were."""
    changes = {"learner.zero_stage": stage, "learner.lora": {"rank": 2} if lora else None, "learner.kl_weight": 50.0}
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
    expected = naive_gradient(now, trees, settings.learner.clip_range, reference, kl_weight=50.0)
    second = update(learner, trees)
    assert second.kl > 1e-6
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, moment in first_moments(learner).items():  # with beta1 = 0 it is the gradient
        torch.testing.assert_close(moment, expected[name], atol=1e-4 * scale, rtol=1e-4)


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


@pytest.mark.parametrize(
    ("keep_last_split", "below_it", "kept"), [(True, False, 8), (True, True, 10), (False, False, 6)]
)
def test_pruned_edges_are_not_computed_and_the_rest_counts_more(
    run_settings: Settings, sample: Sample, keep_last_split: bool, below_it: bool, kept: int
) -> None:
    width = {"mode": "parent_top1", "keep_last_split": keep_last_split}
    depth = None if below_it else {"mode": "fixed", "window": 1}
    settings = run_settings({"pruning.width": width, "pruning.depth": depth})
    learner = Learner(load_policy(settings.policy), settings)
    schedule = settings.schedule.build()  # five steps with splits at 0 and 2: 2, 2, 4, 4 trained edges
    stats = update(learner, sample(learner.policy, schedule, prompts=("1", "2")))
    assert (stats.edges, stats.rows) == (2 * kept, 2 * (1 + 2 + 2 + 2 * below_it))
    assert (stats.pruned_edges, stats.skipped_edges) == (2 * (12 - kept), 0)


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


@pytest.mark.parametrize("keep_graph", [False, True])
def test_an_update_without_a_single_edge_makes_no_step(
    run_settings: Settings, sample: Sample, keep_graph: bool
) -> None:
    changes = {"learner.updates_per_iteration": 1, "prompts.per_iteration": 2, "learner.keep_graph": keep_graph}
    settings = run_settings(changes)
    learner = Learner(load_policy(settings.policy), settings)
    before = {name: value.clone() for name, value in learner.engine.weights().items()}
    trees = sample(
        learner.policy,
        settings.schedule.build(),
        prompts=("1", "2"),
        rewards="equal",
        kept=learner.kept_forwards,
    )
    stats = update(learner, trees)
    assert not list((learner.kept_forwards or ForwardCache()).drain())
    assert (stats.edges, stats.rows) == (0, 0)
    assert stats.skipped_edges == 2 * settings.schedule.build().trained_edges
    assert all(torch.equal(before[name], value) for name, value in learner.engine.weights().items())


def test_a_left_out_tree_counts_as_one_without_advantages(run_settings: Settings, sample: Sample) -> None:
    """So that the others count no more than they would: the sum is over all trees of an update."""
    settings = run_settings({"learner.updates_per_iteration": 1, "prompts.per_iteration": 2})
    found = []
    for left_out in (False, True):
        learner = Learner(load_policy(settings.policy), settings)
        tree, other = sample(learner.policy, settings.schedule.build(), prompts=("1", "2"))
        if left_out:
            other = Tree(1, "2", tree.schedule, left_out=True)
        else:
            other.rewards = {name: np.full_like(values, 0.5) for name, values in other.rewards.items()}
        stats = update(learner, [tree, other])
        assert stats.edges == tree.schedule.trained_edges
        assert stats.pruned_edges == 0
        found.append((stats.gradient_norm, {n: w.clone() for n, w in learner.weights().items()}))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_rows_are_those_that_the_schedule_counts(run_settings: Settings, sample: Sample) -> None:
    """The paper's tree: 203 forward passes to sample it, 187 forward and backward passes to learn from it."""
    schedule = {"steps": 20, "splits": {0: 2, 3: 2, 6: 2, 9: 2}, "eta": 0.3}
    settings = run_settings({"schedule": schedule, "prompts.per_iteration": 2, "learner.skip_zero_advantage": False})
    learner = Learner(load_policy(settings.policy), settings)
    rows = {False: 0, True: 0}

    def count(module: object, args: object, kwargs: dict) -> None:
        rows[torch.is_grad_enabled()] += len(kwargs["hidden_states"])

    learner.policy.network.register_forward_pre_hook(count, with_kwargs=True)
    stats = update(learner, sample(learner.policy, settings.schedule.build(), prompts=("1",)))
    assert rows == {False: 203, True: 187}
    assert (stats.rows, stats.edges) == (187, 202)


def test_an_update_with_a_tree_missing_is_refused(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings()
    learner = Learner(load_policy(settings.policy), settings)
    with pytest.raises(ValueError, match="an update takes 2 trees; got 1"):
        update(learner, sample(learner.policy, settings.schedule.build(), prompts=("1",)))
    with pytest.raises(ValueError, match="an update takes 2 trees; got 3"):
        update(learner, sample(learner.policy, settings.schedule.build(), prompts=("1", "2")))


def test_a_tree_with_scores_missing_is_refused(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings()
    learner = Learner(load_policy(settings.policy), settings)
    trees = sample(learner.policy, settings.schedule.build(), prompts=("1", "2"))
    trees[0].rewards["ocr"][0] = np.nan
    with pytest.raises(ValueError, match="tree 0 .* isn't wholly sampled and scored"):
        update(learner, trees)


def test_clipped_objective_by_hand() -> None:
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    logprobs = ratios.log().requires_grad_()
    objective = clipped_objective(logprobs, torch.zeros(5), advantages, torch.full((5,), 0.2), clip_range=0.1)
    assert objective.loss.item() == pytest.approx(-0.2 * (2 + 1.1 - 1.5 + 0.5 - 0.9))
    assert objective.clipped.tolist() == [False, True, False, False, True]
    objective.loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.4, 0, 0.3, -0.1, 0])


# Precision, checkpointing, publishing -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_hundred_bfloat16_micro_batches_lose_no_gradient(run_settings: Settings, stage: int) -> None:
    """1 + 100 * 0.003 stays 1 when gradients are added up in bfloat16, and is 0.003 when only the last one is kept."""
    settings = run_settings({"learner.zero_stage": stage, "policy.precision": "bfloat16"})
    learner = Learner(load_policy(settings.policy), settings)
    bias = learner.engine._parameters["proj_out.bias"]  # its gradient is that of the output, summed over tokens
    tokens = learner.policy.latent_shape[0]
    inputs = (
        torch.randn(1, *learner.policy.latent_shape),
        torch.tensor([0.5]),
        {key: value[None] for key, value in learner.policy.encode("1").items()},
    )
    for scale in [1.0, *[0.003] * 100]:
        velocity = learner.policy.velocity(*inputs, learner.engine.module)
        learner.engine.backward(velocity.float().sum() / tokens * scale)
    learner.engine.step()
    moment = safe_get_full_optimizer_state(bias, "exp_avg") / 0.1
    torch.testing.assert_close(moment, torch.full_like(moment, 1.3), atol=0.01, rtol=0)


def test_gradient_checkpointing_changes_no_gradient(run_settings: Settings, sample: Sample) -> None:
    weights = []
    for checkpointing in (False, True):
        settings = run_settings({"learner.gradient_checkpointing": checkpointing})
        learner = Learner(load_policy(settings.policy), settings)
        update(learner, sample(learner.policy, settings.schedule.build(), prompts=("1", "2")))
        weights.append({name: value.clone() for name, value in learner.engine.weights().items()})
        assert learner.policy.network.is_gradient_checkpointing == checkpointing
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("stage", "precision", "lora"),
    [
        (0, "float32", False),
        (1, "bfloat16", True),
        (2, "bfloat16", False),
        (3, "float32", False),
        (3, "bfloat16", True),
    ],
)
def test_published_weights_make_another_worker_the_same(
    run_settings: Settings, sample: Sample, stage: int, precision: str, lora: bool
) -> None:
    """Trees of the worker that took the weights over have ratio 1 in the learner; the worker before had not."""
    settings = run_settings(
        {
            "learner.zero_stage": stage,
            "policy.precision": precision,
            "learner.lora": {"rank": 2} if lora else None,
            "learner.optimizer.learning_rate": 1e-2,
        }
    )
    learner = Learner(load_policy(settings.policy), settings)
    other = load_policy(settings.policy)
    schedule = settings.schedule.build()
    if lora:
        other.add_lora(settings.learner.lora)
    load_weights(other.network, learner.weights())
    rollout = RolloutSettings(max_batch_rows=2)
    first = update(learner, sample(other, schedule, prompts=("1", "2"), rollout=rollout))
    stale = sample(other, schedule, prompts=("1", "2"), rollout=rollout)
    version, weights = learner.publish(), learner.weights()
    worker = RolloutWorker(other, rollout)
    worker.adopt(version, weights)
    assert (version, worker.version) == (1, 1)
    assert all(not name.endswith("base_layer.weight") for name in weights)
    fresh = sample(other, schedule, prompts=("1", "2"), rollout=rollout)
    bound = 1e-5 if precision == "float32" else 1e-3
    assert first.logprob_abs_diff < bound
    assert update(learner, fresh).logprob_abs_diff < bound
    far = update(learner, stale)
    assert far.logprob_abs_diff > 10 * bound
    assert far.logprob_abs_diff == pytest.approx(max(math.log(far.ratio_max), -math.log(far.ratio_min)), rel=1e-4)


def test_ema_follows_its_formula(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings({"learner.ema_decay": 0.9})
    learner = Learner(load_policy(settings.policy), settings)
    expected = {name: value.clone() for name, value in learner.engine.weights().items()}
    for _ in range(2):
        update(learner, sample(learner.policy, settings.schedule.build(), prompts=("1", "2")))
        for name, value in learner.engine.weights().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value
    for name, value in expected.items():
        torch.testing.assert_close(learner.average.weights[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "expected"), [("constant", [0, 0.5, 1, 1]), ("linear", [0, 0.5, 1, 0.5])])
def test_learning_rate_schedules(run_settings: Settings, sample: Sample, name: str, expected: list[float]) -> None:
    settings = run_settings({"learner.optimizer": {"schedule": name, "warmup_updates": 2, "learning_rate": 1e-3}})
    learner = Learner(load_policy(settings.policy), settings)
    rates = [
        update(learner, sample(learner.policy, settings.schedule.build(), prompts=("1", "2"))).learning_rate
        for _ in range(4)
    ]
    assert rates == pytest.approx([rate * 1e-3 for rate in expected])


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "float32"), (1, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16")]
)
def test_a_checkpoint_goes_on_bit_by_bit(run_settings: Settings, sample: Sample, tmp_path, stage, precision) -> None:
    changes = {"learner.zero_stage": stage, "policy.precision": precision, "learner.ema_decay": 0.5}
    settings = run_settings({**changes, "learner.optimizer": {"schedule": "cosine", "learning_rate": 1e-2}})
    source = load_policy(settings.policy)
    trees = [sample(source, settings.schedule.build(), prompts=(f"{i}", "2")) for i in range(3)]
    learner = Learner(load_policy(settings.policy), settings)
    update(learner, trees[0])
    learner.publish()
    (tmp_path / "checkpoint").mkdir()
    learner.save(tmp_path / "checkpoint")
    resumed = Learner(load_policy(settings.policy), settings)
    resumed.load(tmp_path / "checkpoint")
    assert resumed.version == learner.version == 1
    for which in (learner, resumed):
        for group in trees[1:]:
            last = update(which, group)
        assert last.learning_rate < 1e-2
    for attribute in (lambda x: x.engine.weights(), lambda x: x.average.weights):
        for name, value in attribute(learner).items():
            assert torch.equal(attribute(resumed)[name], value)


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_checkpoint_runs_no_code(stage: int, run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"learner.zero_stage": stage})
    learner = Learner(load_policy(settings.policy), settings)
    (tmp_path / "checkpoint").mkdir()
    learner.save(tmp_path / "checkpoint")
    for file in (tmp_path / "checkpoint").rglob("*.pt"):
        torch.save({**torch.load(file, weights_only=False), "more": Harm(tmp_path / "harm")}, file)
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        learner.load(tmp_path / "checkpoint")
    assert not (tmp_path / "harm").exists()
