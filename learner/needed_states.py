"""The states of a window's trees that a learner rank works on, told before any of them is there."""

from collections.abc import Iterator, Sequence

from ..proto.settings import RunSettings
from ..proto.tree import Tree, Window
from .credit import credit_of
from .leaf_rows import leaf_rows
from .rows import pick_rows, worked_on


def needed_states(window: Window[Tree], settings: RunSettings, *, rank: int = 0, ranks: int = 1) -> list[set[int]]:
    """The nodes of each tree whose states `rank` needs for its share of a window of scored trees.

    Raises ValueError for a tree with scores missing, and InputError if pruning keeps no edge.
    """
    needed: list[set[int]] = [set() for _ in window.trees]
    for tree, nodes in _rows(window, settings, rank, ranks):
        needed[tree].update(nodes)
    return needed


def _rows(window: Window[Tree], settings: RunSettings, rank: int, ranks: int) -> Iterator[tuple[int, Sequence[int]]]:
    """The position of each row's tree, and the nodes whose states the row has."""
    learner, trees = settings.learner, window.trees
    # How noisy a step is changes what its edges weigh, not which of them are trained.
    noise = [1.0] * len(trees[0].schedule.steps)
    credits = [credit_of(tree, settings, window.iteration, noise) for tree in trees]
    skip, size = learner.skip_zero_advantage, learner.rows_per_micro_batch
    if learner.learns_from_leaves:
        leaves = leaf_rows(trees, credits, settings.advantage.clip, learner.nft.noise_levels, skip=skip)
        position = {tree.number: i for i, tree in enumerate(trees)}
        for leaf in worked_on(leaves, size, rank, ranks):
            yield position[leaf.tree.number], (leaf.leaf,)
    else:
        edges = pick_rows(trees, credits, skip_zero_advantage=skip and not learner.kl_weight)
        for row in worked_on(edges, size, rank, ranks):
            yield row.tree, (row.parent, *row.children.tolist())
