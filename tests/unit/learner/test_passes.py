"""Several passes over the same trees: the same as updates that are given them again, as far as policies are trusted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.learner.credit import credit_of
from branchgrpo.learner.leaf_rows import leaf_rows, noised
from branchgrpo.learner.learner import Learner
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.tree import Tree, Window
from branchgrpo.proto.update_stats import UpdateStats
from branchgrpo.rollout_workers.policies.load import load_policy
from support import Settings, assert_bit_equal

Sample = Callable[..., list[Tree]]
NFT = {
    "schedule": {"method": "nft", "steps": 4, "group": 4},
    "advantage.normaliser": "group",
    "learner.objective": "nft",
}


def updated(learner: Learner, trees: list[Tree]) -> UpdateStats:
    """An update of two windows, a tree each."""
    for tree in trees:
        learner.accumulate(Window(1, [tree], closes_update=tree is trees[-1]))
    return learner.step()


def test_passes_are_updates_with_the_same_trees(run_settings: Settings, sample: Sample) -> None:
    once, twice = run_settings(), run_settings({"learner.passes": 2})
    trees = sample(load_policy(once.policy), once.schedule.build(), prompts=("1", "2"))
    repeated, passing = (Learner(load_policy(settings.policy), settings) for settings in (once, twice))
    first, second = updated(repeated, trees), updated(repeated, trees)
    stats = updated(passing, trees)
    assert_bit_equal(repeated.weights(), passing.weights())
    assert (stats.passes, stats.trees) == (2, 2)
    assert stats.rows == first.rows + second.rows == 2 * first.rows
    assert stats.edges == first.edges + second.edges
    assert stats.logprob_abs_diff == first.logprob_abs_diff < 1e-5 < second.logprob_abs_diff
    assert (stats.ratio_min, stats.ratio_max) == (second.ratio_min, second.ratio_max)
    assert stats.clip_fraction == pytest.approx((first.clip_fraction + second.clip_fraction) / 2)
    assert stats.gradient_norm == pytest.approx((first.gradient_norm + second.gradient_norm) / 2)


def test_passes_end_where_the_policy_has_strayed_too_far(run_settings: Settings, sample: Sample) -> None:
    """The first pass has ratio 1, so the second is always made."""

    def passes(trust: float | None) -> int:
        settings = run_settings({"learner.passes": 5, "learner.trust": trust})
        learner = Learner(load_policy(settings.policy), settings)
        return updated(learner, sample(learner.policy, settings.schedule.build(), prompts=("1", "2"))).passes

    assert [passes(trust) for trust in (None, 1e9, 1e-4)] == [5, 5, 2]


def test_equal_leaves_get_no_pass(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings({"learner.passes": 3})
    learner = Learner(load_policy(settings.policy), settings)
    stats = updated(learner, sample(learner.policy, settings.schedule.build(), prompts=("1", "2"), rewards="equal"))
    assert (stats.passes, stats.rows) == (1, 0)
    assert stats.learning_rate == settings.learner.optimizer.learning_rate, "a rate of 0 would look like a fault"


def test_each_pass_of_nft_has_noise_of_its_own(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings(NFT)
    trees = sample(load_policy(settings.policy), settings.schedule.build(), prompts=("1", "2"))
    credits = [credit_of(tree, settings, 1) for tree in trees]
    states = [noised(leaf_rows(trees, credits, 5.0, 2, turn=turn), 0, 1, 2).states for turn in (0, 1, 2)]
    pooled = torch.cat(states).flatten(1)
    assert len(pooled.unique(dim=0)) == len(pooled)


@pytest.mark.parametrize("changes", [{}, NFT, {**NFT, "learner.objective": "awm"}], ids=["ratio", "nft", "awm"])
def test_a_run_with_passes_goes_on_bit_by_bit(changes: dict[str, Any], run_settings: Settings, tmp_path: Any) -> None:
    settings: RunSettings = run_settings(
        {"rewards": {"jpeg_compressibility": {}}, "learner.passes": 3, "iterations": 2, "threads": 1, **changes}
    )
    straight, first, resumed = (InProcessLoop(settings, ["1", "2", "3", "4"]) for _ in range(3))
    reports = [straight.iterate(number) for number in (1, 2)]
    assert [update.passes for report in reports for update in report.updates] == [3] * 4
    first.iterate(1)
    first.save(tmp_path / "checkpoint")
    resumed.load(tmp_path / "checkpoint")
    resumed.iterate(2)
    assert_bit_equal(straight.learner.weights(), resumed.learner.weights())
