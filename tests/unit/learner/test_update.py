"""Updates of the learner: what is trained, in which precision, what is published, and checkpoints."""

import math
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.learner import metrics
from branchgrpo.learner.learner import Learner
from branchgrpo.proto.packed_tensor import ForwardCache
from branchgrpo.proto.settings import LearnerSettings, RolloutSettings
from branchgrpo.proto.tree import Tree, Window
from branchgrpo.rollout_workers.policies.base import load_weights
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from deepspeed.utils import safe_get_full_optimizer_state
from gradients import Sample, update
from prometheus_client import REGISTRY
from support import Settings


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


@pytest.mark.parametrize("staleness", [0, 1])
def test_trees_of_older_weights_raise_no_alarm(run_settings: Settings, sample: Sample, staleness: int) -> None:
    changes = {"execution": "ray", "staleness": staleness}
    settings = run_settings({"learner.updates_per_iteration": 1, "prompts.per_iteration": 2, **changes})
    learner = Learner(load_policy(settings.policy), settings)
    shown = []
    for iteration in (1, 2):
        trees = sample(learner.policy, settings.schedule.build(), prompts=("1", "2"))
        for tree in trees:
            tree.logprobs += 0.25 * iteration  # what other weights would have said
        learner.accumulate(Window(iteration, trees, closes_update=True))
        assert learner.step().logprob_abs_diff == pytest.approx(0.25 * iteration, abs=1e-4)
        shown.append(REGISTRY.get_sample_value("branchgrpo_logprob_abs_diff"))
    assert shown == pytest.approx([0.25, 0.25 if staleness else 0.5], abs=1e-4)


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({"clip_range": 1e-4}, 1e-5),
        ({"clip_range": 0.2}, 1e-3),
        ({"clip_range": 2e-6, "trust_region": "guard"}, 1e-3),
        ({"clip_range": 1e-4, "trust_region": "divergence"}, 1e-3),
    ],
)
def test_a_difference_is_measured_by_the_clip_range(given: dict[str, Any], limit: float) -> None:
    metrics.note_settings(LearnerSettings(**given))
    assert REGISTRY.get_sample_value("branchgrpo_logprob_abs_diff_limit") == pytest.approx(limit)


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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_many_bfloat16_micro_batches_lose_no_gradient(run_settings: Settings, stage: int) -> None:
    """1 + 40 * 0.003 stays 1 when gradients are added up in bfloat16, and is 0.003 when only the last one is kept."""
    settings = run_settings({"learner.zero_stage": stage, "policy.precision": "bfloat16"})
    learner = Learner(load_policy(settings.policy), settings)
    bias = learner.engine._parameters["proj_out.bias"]  # its gradient is that of the output, summed over tokens
    tokens = learner.policy.latent_shape[0]
    inputs = (
        torch.randn(1, *learner.policy.latent_shape),
        torch.tensor([0.5]),
        {key: value[None] for key, value in learner.policy.encode("1").items()},
    )
    for scale in [1.0, *[0.003] * 40]:
        velocity = learner.policy.velocity(*inputs, learner.engine.module)
        learner.engine.backward(velocity.float().sum() / tokens * scale)
    learner.engine.step(1e-3)
    moment = safe_get_full_optimizer_state(bias, "exp_avg") / 0.1
    torch.testing.assert_close(moment, torch.full_like(moment, 1.12), atol=0.01, rtol=0)


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


def test_updates_are_counted_and_an_iteration_s_first_is_gauged(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings({})
    learner = Learner(load_policy(settings.policy), settings)
    trees = sample(learner.policy, settings.schedule.build(), prompts=("1", "2", "3", "4"))
    exported = REGISTRY.get_sample_value
    before = exported("branchgrpo_updates_total")
    first, second = update(learner, trees[:2]), update(learner, trees[2:])
    assert exported("branchgrpo_updates_total") == before + 2
    assert exported("branchgrpo_gradient_norm") == second.gradient_norm
    assert exported("branchgrpo_logprob_abs_diff") == first.logprob_abs_diff < second.logprob_abs_diff


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


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "float32"), (1, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16")]
)
def test_a_checkpoint_goes_on_bit_by_bit(run_settings: Settings, sample: Sample, tmp_path, stage, precision) -> None:
    changes = {"learner.zero_stage": stage, "policy.precision": precision, "learner.ema_decay": 0.5}
    settings = run_settings({**changes, "learner.optimizer": {"schedule": "cosine", "learning_rate": 1e-2}})
    source = load_policy(settings.policy)
    trees = [sample(source, settings.schedule.build(), prompts=(f"{i}", "2")) for i in range(2)]
    learner = Learner(load_policy(settings.policy), settings)
    update(learner, trees[0])
    learner.publish()
    (tmp_path / "checkpoint").mkdir()
    learner.save(tmp_path / "checkpoint")
    resumed = Learner(load_policy(settings.policy), settings)
    resumed.load(tmp_path / "checkpoint")
    assert resumed.version == learner.version == 1
    for which in (learner, resumed):
        assert update(which, trees[1]).learning_rate < 1e-2
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
