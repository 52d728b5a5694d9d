"""Which leaves are compared, and the scores that come of it."""

from collections import Counter

import numpy as np
import pytest
from branchgrpo.cluster.run.advice import advice
from branchgrpo.proto.errors import InputError
from branchgrpo.reward_service.comparisons import mean_shares, pairings
from branchgrpo.reward_service.judge_limits import longest_request
from support import Settings

PROMPTS = ["a"] * 5 + ["b"] * 2 + ["c"] + ["a"] * 2
JUDGE = {"url": "http://127.0.0.1:9/v1", "model": "judge", "questions": ["Is the first better?"], "opponents": 3}


@pytest.mark.parametrize("opponents", [1, 3, 6, 99])
def test_each_leaf_comes_first_as_often_as_second(opponents: int) -> None:
    pairs = pairings(PROMPTS, opponents)
    assert len(set(pairs)) == len(pairs)
    assert all(PROMPTS[first] == PROMPTS[second] and first != second for first, second in pairs)
    others = Counter(PROMPTS)
    expected = {leaf: min(opponents, others[prompt] - 1) for leaf, prompt in enumerate(PROMPTS) if prompt != "c"}
    assert Counter(first for first, _ in pairs) == Counter(second for _, second in pairs) == expected


def test_with_all_others_the_score_is_the_share_beaten() -> None:
    strengths = np.random.default_rng(0).permutation(8)
    pairs = pairings(["a"] * 8, 7)
    assert len(pairs) == 8 * 7
    grades = [float(strengths[first] > strengths[second]) for first, second in pairs]
    np.testing.assert_allclose(mean_shares(pairs, grades, 8), strengths / 7)


def test_the_order_of_two_leaves_does_not_count() -> None:
    """A judge that favours what it sees first favours nobody."""
    pairs = pairings(PROMPTS, 2)
    np.testing.assert_allclose(mean_shares(pairs, [0.9] * len(pairs), len(PROMPTS)), 0.5)


def test_no_opponent_is_no_difference() -> None:
    assert mean_shares(pairings(["a", "b"], 4), [], 2).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rollout.trees_per_task": 2, "rollout.max_batch_rows": 15}, "max_batch_rows is 15: it must be at least 16"),
        ({"rollout.max_batch_rows": "auto"}, "give a number for rollout.max_batch_rows, which is auto"),
        ({"pools.rewards": {"better": {"batch_pictures": 7}}}, "batch_pictures is 7: it must be at least 8"),
        ({"checkpoint.keep_best": {}, "evaluation.every": 1}, "keep_best chooses by 'better', which compares"),
        (
            {"rewards.better.weight": 0.0, "rewards.ocr": {}, "evaluation.rewards": ["better"]},
            "evaluation.rewards has 'better', which compares",
        ),
    ],
)
def test_trees_that_would_be_cut_are_refused(run_settings: Settings, changes: dict, told: str) -> None:
    leaves = {"schedule": {"method": "branch_grpo", "steps": 4, "splits": {0: 2, 1: 2, 2: 2}, "eta": 0.7}}
    whole = {**leaves, "rewards": {"better": {"judge": JUDGE}}}
    assert any("its mean is always 0.5" in line for line in advice(run_settings(whole)))
    with pytest.raises(InputError, match=told):
        run_settings({**whole, **changes})


def test_comparisons_have_as_many_times_as_long(run_settings: Settings) -> None:
    def seconds(opponents: int | None) -> float:
        judge = (
            run_settings({"rewards": {"better": {"judge": {**JUDGE, "opponents": opponents}}}}).rewards["better"].judge
        )
        assert judge
        return longest_request(judge, 50, 64)

    assert seconds(3) == 3 * seconds(1) == 3 * seconds(None)
