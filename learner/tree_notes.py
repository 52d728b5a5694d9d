"""Notes on the trees that are recorded: what the learner makes of them while it works."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..proto.learned_tree import EdgeState, LearnedTree
from ..proto.tree import FloatArray, Tree
from ..rollout_workers.kernels import grid_levels
from .credit import Credit
from .leaf_rows import LeafRow
from .rows import EdgeName, Row

Levels = Callable[[int], Sequence[float]]
"""From a number of steps to noise levels, as of `Policy.sigmas`."""


class TreeNotes:
    """Notes on those trees of an update whose number is below `below`; with 0, none are taken."""

    def __init__(self, below: int = 0) -> None:
        self._below = below
        self._trees: dict[int, LearnedTree] = {}
        self._differences: list[tuple[Sequence[EdgeName], torch.Tensor]] = []

    def edges(self, trees: Sequence[Tree], credits: Sequence[Credit], rows: Sequence[Row], sigmas: Levels) -> None:
        """Note a window's trees, their credits, and the `rows` that are trained; `sigmas` are the policy's."""
        for i in self._chosen(trees):
            trained = [int(child) for row in rows if row.tree == i for child in row.children]
            self._note(trees[i], credits[i], trees[i].schedule.trained, trained, sigmas)

    def leaves(self, trees: Sequence[Tree], credits: Sequence[Credit], rows: Sequence[LeafRow], sigmas: Levels) -> None:
        """Note a window's trees, their credits, and the leaves that are learned from; `sigmas` are the policy's."""
        for i in self._chosen(trees):
            own, schedule = [row for row in rows if row.tree is trees[i]], trees[i].schedule
            merits = np.full(schedule.leaves, np.nan)
            merits[[row.leaf - schedule.first_node[-2] for row in own]] = [row.merit for row in own]
            leaves = np.arange(schedule.nodes) >= schedule.first_node[-2]
            self._note(trees[i], credits[i], leaves, [row.leaf for row in own], sigmas, merits)

    def ratios(self, edges: Sequence[EdgeName], differences: torch.Tensor) -> None:
        """Note the new minus the old log-probability of a micro-batch's `edges`, float32 [E]; of padding there are
        none."""
        if self._trees and edges:
            self._differences.append((edges, differences))

    def taken(self) -> tuple[LearnedTree, ...]:
        """The notes on all trees, with this rank's ratios."""
        for edges, differences in self._differences:
            for (tree, node), ratio in zip(edges, differences.exp().tolist(), strict=True):
                if tree in self._trees:
                    self._trees[tree].ratios[node] = ratio
        return tuple(self._trees.values())

    def _chosen(self, trees: Sequence[Tree]) -> list[int]:
        return [i for i, tree in enumerate(trees) if tree.number < self._below and not tree.left_out]

    def _note(
        self,
        tree: Tree,
        credit: Credit,
        trainable: npt.NDArray[np.bool_],
        trained: Sequence[int],
        sigmas: Levels,
        merits: FloatArray | None = None,
    ) -> None:
        schedule = tree.schedule
        states = np.full(schedule.nodes, EdgeState.UNTRAINED, dtype=np.uint8)
        states[trainable] = EdgeState.PRUNED
        states[credit.weights > 0] = EdgeState.SKIPPED
        states[list(trained)] = EdgeState.TRAINED
        states[: schedule.roots] = EdgeState.ROOT
        self._trees[tree.number] = LearnedTree(
            number=tree.number,
            values=credit.values,
            advantages=credit.advantages,
            weights=credit.weights,
            states=states,
            ratios=np.full(schedule.nodes, np.nan),
            merits=merits,
            sigmas=np.array(grid_levels(schedule, sigmas(schedule.grid_steps)))[schedule.levels],
        )
