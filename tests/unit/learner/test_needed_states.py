"""The states that a rank is said to need are those that its micro-batches ask for."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from branchgrpo.learner.credit import credit_of
from branchgrpo.learner.leaf_rows import leaf_rows, noised_batches
from branchgrpo.learner.needed_states import needed_states
from branchgrpo.learner.rows import micro_batches, pick_rows
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.tree import Tree, Window
from branchgrpo.rollout_workers.policies.base import Policy
from support import Settings

SMALL_BATCHES = {"learner.rows_per_micro_batch": 3}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """Number of a tree -> the nodes whose states were asked for."""
    states: defaultdict[int, set[int]] = defaultdict(set)
    state = Tree.state

    def noted(tree: Tree, node: int) -> torch.Tensor:
        states[tree.number].add(int(node))
        return state(tree, node)

    monkeypatch.setattr(Tree, "state", noted)
    return states


def worked_through(trees: list[Tree], settings: RunSettings, rank: int, ranks: int) -> None:
    """Make all micro-batches of a rank."""
    credits = [credit_of(tree, settings, 1, [1.0] * len(tree.schedule.steps)) for tree in trees]
    learner, share = settings.learner, {"rank": rank, "ranks": ranks}
    if learner.objective == "nft":
        rows = leaf_rows(trees, credits, settings.advantage.clip, learner.nft.noise_levels)
        list(noised_batches(rows, settings, 1, **share))
    else:
        list(micro_batches(pick_rows(trees, credits), trees, credits, rows=learner.rows_per_micro_batch, **share))


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pruning.depth": {"mode": "fixed", "window": 1}},
        {
            "schedule": {"method": "nft", "steps": 5, "group": 3},
            "advantage.normaliser": "group",
            "learner.objective": "nft",
        },
    ],
    ids=["edges", "pruned", "leaves"],
)
def test_what_is_needed_is_what_is_asked_for(
    ranks: int,
    changes: dict[str, Any],
    tiny_policy: Policy,
    run_settings: Settings,
    sample: Callable[..., list[Tree]],
    asked: dict[int, set[int]],
) -> None:
    settings = run_settings({**SMALL_BATCHES, **changes})
    trees = sample(tiny_policy, settings.schedule.build(), prompts=("1", "2", "3"))
    window = Window(1, [*trees, Tree(3, "4", trees[0].schedule, left_out=True)], closes_update=True)
    for rank in range(ranks):
        asked.clear()
        needed = needed_states(window, settings, rank=rank, ranks=ranks)
        assert not asked  # to tell asks for none
        worked_through(list(window.trees), settings, rank, ranks)
        assert needed == [asked[number] for number in range(4)]
        assert any(needed)
    assert not needed[3]
