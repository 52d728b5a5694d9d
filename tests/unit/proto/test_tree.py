"""A tree takes each node and score once and invents none."""

import numpy as np
import pytest
import torch
from branchgrpo.proto.schedule import tree_schedule
from branchgrpo.proto.tree import Tree, TreePart

SCHEDULE = tree_schedule(3, kernel="dance", eta=0.5, splits={0: 2})


def part(nodes: list[int]) -> TreePart:
    return TreePart(
        tree=0,
        nodes=np.array(nodes),
        logprobs=torch.ones(len(nodes)),
        latents=[torch.full((2,), float(node)) for node in nodes],
        leaves=np.array([5, 6]),
    )


def test_parts_in_any_cut_make_the_whole() -> None:
    tree = Tree(0, "x", SCHEDULE)
    tree.add(part([0, 1, 3, 5]))
    assert not tree.scored([])
    tree.add(part([2, 4, 6]))
    tree.add_scores(np.array([5]), {"r": np.array([0.5])})
    assert not tree.scored(["r"])
    tree.add_scores(np.array([6]), {"r": np.array([1.0])})
    assert tree.scored(["r"])
    assert not tree.scored(["r", "another"])
    assert [float(tree.state(node)[0]) for node in range(7)] == list(range(7))
    assert tree.rewards["r"].tolist() == [0.5, 1.0]


def test_latents_are_references() -> None:
    tree, arrived = Tree(0, "x", SCHEDULE), part([0])
    tree.add(arrived)
    assert tree.state(0) is arrived.latents[0]


def test_a_node_that_arrives_twice_is_refused() -> None:
    tree = Tree(0, "x", SCHEDULE)
    tree.add(part([0, 1]))
    with pytest.raises(ValueError, match="twice"):
        tree.add(part([1, 2]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="reward 'r' gave"):
        Tree(0, "x", SCHEDULE).add_scores(np.array([5]), {"r": np.array([value])})
