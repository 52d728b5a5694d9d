"""What is told of recorded trees is what the learner used, against a second computation."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
from branchgrpo.learner.learner import Learner
from branchgrpo.proto.learned_tree import EdgeState
from branchgrpo.proto.tree import Tree, Window
from branchgrpo.rollout_workers.policies.load import load_policy
from gradients import naive_ratio
from support import Settings

Sample = Callable[..., list[Tree]]
RECORDED = {"logging": {"trees_every": 1, "trees": 3}}


def test_notes_are_what_the_learner_used(run_settings: Settings, sample: Sample) -> None:
    """Two updates of two trees; the last tree isn't recorded. Width pruning keeps the better child of each last split,
    and of tree 2 both halves are worth the same, so the two edges out of its root have no advantage."""
    width = {"mode": "parent_top1", "keep_last_split": False}
    settings = run_settings({**RECORDED, "pruning.width": width, "learner.optimizer.learning_rate": 1e-2})
    learner = Learner(load_policy(settings.policy), settings)
    # Five steps with splits at 0 and 2, so the depths begin with the nodes 0, 1, 3, 5, 9 and 13.
    trees = sample(learner.policy, settings.schedule.build(), prompts=("1", "2", "3", "4"))
    for tree, scores in zip(trees, ([0.1, 0.4, 0.3, 0.8], [1, 2, 4, 8], [0.2, 0.6, 0.6, 0.2]), strict=False):
        tree.rewards["ocr"] = np.array(scores, dtype=float)
    found = {}
    for first in (0, 2):
        before = deepcopy(learner.policy)
        learner.accumulate(Window(1, trees[first : first + 2], closes_update=True))
        found |= {own.number: (own, before) for own in learner.step().recorded}
    assert sorted(found) == [0, 1, 2]
    above, below = [1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]
    kept_of = {0: [6, 8, 10, 12], 1: [6, 8, 10, 12], 2: [6, 7, 10, 11]}
    for number, (notes, before) in found.items():
        a, b, c, d = scores = trees[number].rewards["ocr"]
        ab, cd = (a + b) / 2, (c + d) / 2
        values = [(ab + cd) / 2, ab, cd, ab, cd, *scores, *scores, *scores]
        np.testing.assert_allclose(notes.values, values, rtol=1e-12)
        of_two = np.zeros(2) if number == 2 else np.array([-1, 1]) / np.sqrt(2)
        of_four = (scores - scores.mean()) / scores.std(ddof=1)
        np.testing.assert_allclose(notes.advantages, [0, *of_two, *of_two, *of_four, *of_four, *[0] * 4], rtol=1e-12)
        weighted = [*above, *kept_of[number]]
        trained = [node for node in weighted if notes.advantages[node] != 0]
        np.testing.assert_allclose(notes.weights, [node in weighted and 1 / len(weighted) for node in range(17)])
        states = {0: EdgeState.ROOT, **dict.fromkeys(below, EdgeState.PRUNED)}
        states |= dict.fromkeys(weighted, EdgeState.SKIPPED) | dict.fromkeys(trained, EdgeState.TRAINED)
        assert [states.get(node, EdgeState.UNTRAINED) for node in range(17)] == [*notes.states]
        ratios = [naive_ratio(before, trees[number], node) if node in trained else np.nan for node in range(17)]
        np.testing.assert_allclose(notes.ratios, ratios, rtol=1e-5)
        assert (np.abs(notes.ratios[trained] - 1) > 1e-4).all() == (number == 2)  # after an update
        np.testing.assert_allclose(notes.sigmas, learner.policy.sigmas(5), atol=1e-6)
        assert notes.merits is None


def test_of_leaves_their_merits_are_noted(run_settings: Settings, sample: Sample) -> None:
    nft = {"schedule": {"method": "nft", "steps": 4, "group": 4}, "advantage": {"normaliser": "group", "clip": 1.2}}
    one = {"learner.objective": "nft", "learner.updates_per_iteration": 1, "prompts.per_iteration": 1}
    settings = run_settings({**RECORDED, **nft, **one})
    learner = Learner(load_policy(settings.policy), settings)
    (tree,) = sample(learner.policy, settings.schedule.build(), prompts=("1",))
    tree.rewards["ocr"] = np.array([0.0, 0.5, 0.5, 1.0])  # two at the mean, and two just beyond the clip
    learner.accumulate(Window(1, [tree], closes_update=True))
    (notes,) = learner.step().recorded
    np.testing.assert_allclose(notes.advantages, [*[0.0] * 16, -1.2, 0, 0, 1.2])
    np.testing.assert_allclose(notes.merits, [0, np.nan, np.nan, 1])
    np.testing.assert_allclose(notes.weights, [*[0.0] * 16, *[0.25] * 4])
    leaves = [EdgeState.TRAINED, EdgeState.SKIPPED, EdgeState.SKIPPED, EdgeState.TRAINED]
    assert [*notes.states] == [EdgeState.ROOT] * 4 + [EdgeState.UNTRAINED] * 12 + leaves
    assert np.isnan(notes.ratios).all()


@pytest.mark.parametrize(("every", "told"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [1, 3, 6])])
def test_trees_are_recorded_when_they_are_due(every: int, told: list[int], run_settings: Settings) -> None:
    logging = run_settings({"logging.trees_every": every, "logging.trees": 2}).logging
    assert [i for i in range(1, 7) if logging.recorded_trees(i) == 2] == told
    assert all(logging.recorded_trees(i) in (0, 2) for i in range(1, 7))


def test_a_left_out_tree_has_no_notes(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings({**RECORDED, "learner.updates_per_iteration": 1, "prompts.per_iteration": 2})
    learner = Learner(load_policy(settings.policy), settings)
    tree, _ = sample(learner.policy, settings.schedule.build(), prompts=("1", "2"))
    other = Tree(1, "2", tree.schedule, left_out=True)
    learner.accumulate(Window(1, [tree, other], closes_update=True))
    assert [notes.number for notes in learner.step().recorded] == [0]


def test_notes_are_of_an_update_s_last_pass(run_settings: Settings, sample: Sample) -> None:
    one = {"learner.passes": 2, "learner.updates_per_iteration": 1, "prompts.per_iteration": 1}
    settings = run_settings({**RECORDED, **one, "learner.optimizer.learning_rate": 1e-2})
    learner = Learner(load_policy(settings.policy), settings)
    (tree,) = sample(learner.policy, settings.schedule.build(), prompts=("1",))
    learner.accumulate(Window(1, [tree], closes_update=True))
    (notes,) = learner.step().recorded
    assert (np.abs(notes.ratios[notes.states == EdgeState.TRAINED] - 1) > 1e-5).all()
