"""How a task is cut into forward passes and parts, from its schedule, as `rollout_workers/expansion.py` does."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...proto.schedule import IntArray, Schedule


@dataclass(frozen=True)
class Part:
    """A finished part of a tree."""

    tree: int
    """Position in the task."""
    leaves: int
    nodes: IntArray
    first: bool


@dataclass(frozen=True)
class Stretch:
    """Forward passes up to the decoding of a chunk of leaves, and the parts that it gives."""

    forwards: tuple[int, ...]
    """Rows of each."""
    pictures: int
    parts: tuple[Part, ...]


@lru_cache(maxsize=64)
def stretches(schedule: Schedule, trees: int, max_batch_rows: int) -> tuple[Stretch, ...]:
    """The steps of a worker for a task of so many trees, in order.

    The states of one depth of all trees are numbered through: a chunk is a range of them, and so are its children.
    """
    done: list[Stretch] = []
    forwards: list[int] = []
    pending: list[list[IntArray]] = [[] for _ in range(trees)]
    started: set[int] = set()

    def runs(depth: int, begin: int, end: int) -> Iterator[tuple[int, IntArray]]:
        """Trees that a chunk belongs to, with their nodes in it."""
        width = schedule.nodes_per_depth[depth]
        for tree in range(begin // width, (end - 1) // width + 1):
            inside = np.arange(max(begin - tree * width, 0), min(end - tree * width, width))
            yield tree, schedule.first_node[depth] + inside

    def grow(depth: int, begin: int, end: int) -> None:
        for step in schedule.steps[depth:]:
            if end - begin > max_batch_rows:
                for cut in range(begin, end, max_batch_rows):
                    grow(depth, cut, min(cut + max_batch_rows, end))
                return
            forwards.append(end - begin)
            depth, begin, end = depth + 1, begin * step.children, end * step.children
            note(depth, begin, end)
        finish(begin, end)

    def finish(begin: int, end: int) -> None:
        parts = []
        for tree, leaves in runs(len(schedule.steps), begin, end):
            nodes, pending[tree] = np.concatenate(pending[tree]), []
            parts.append(Part(tree, len(leaves), nodes, tree not in started))
            started.add(tree)
        done.append(Stretch(tuple(forwards), end - begin, tuple(parts)))
        forwards.clear()

    def note(depth: int, begin: int, end: int) -> None:
        for tree, nodes in runs(depth, begin, end):
            pending[tree].append(nodes)

    note(0, 0, trees * schedule.roots)
    grow(0, 0, trees * schedule.roots)
    return tuple(done)


@lru_cache(maxsize=4096)
def nodes_of_rows(schedule: Schedule, begin: int, end: int) -> IntArray:
    """The parents of some of a tree's rows, which are in the order of parents, and their trained children."""
    children = np.flatnonzero(schedule.trained)
    parents = np.unique(schedule.parent[children])[begin:end]
    return np.concatenate([parents, children[np.isin(schedule.parent[children], parents)]])
