"""Pruning: which edges are left out of the backward pass. Sampling, scoring and advantages don't change."""

import numpy as np
import numpy.typing as npt

from ..proto.schedule import Schedule
from ..proto.settings import PruningSettings, WidthPruningSettings
from ..proto.tree import FloatArray

BoolArray = npt.NDArray[np.bool_]


def kept_edges(values: FloatArray, schedule: Schedule, settings: PruningSettings, iteration: int) -> BoolArray:
    """Whether the edge into each node is trained on, bool [nodes].

    `values` float64 [nodes] are the fused rewards. What the schedule doesn't train is never kept.
    """
    kept = schedule.trained.copy()
    if (width := settings.width) and width.applies(iteration):
        kept &= _kept_by_width(values, schedule, width)
    if (depth := settings.depth) and depth.applies(iteration):
        first = depth.first(schedule, iteration)
        depths = schedule.levels[schedule.depth]
        kept &= (depths < first) | (depths >= first + depth.window)
    return kept


def _kept_by_width(values: FloatArray, schedule: Schedule, settings: WidthPruningSettings) -> BoolArray:
    """Whole chains of edges below the last split are kept or not; everything above stays, and so does, by default, the
    last split's own edge into each child.

    A forest without a split counts as if its roots were the children of one.
    """
    splits = [depth for depth, step in enumerate(schedule.steps, 1) if step.children > 1]
    top = splits[-1] if splits else 0
    leaves = values[schedule.first_node[-2] :]
    chains = np.zeros(schedule.leaves, dtype=bool)
    if settings.mode == "extreme":
        order = np.argsort(leaves, kind="stable")
        chains[order[: settings.keep]] = chains[order[-settings.keep :]] = True
    else:
        siblings = leaves.reshape(-1, schedule.steps[top - 1].children if top else schedule.roots)
        best = siblings.argmax(axis=1) + siblings.shape[1] * np.arange(len(siblings))
        chains[best] = True
    kept = np.ones(schedule.nodes, dtype=bool)
    begin = top + settings.keep_last_split  # depth of the first edge that can be left out
    kept[schedule.first_node[begin] :] = np.tile(chains, len(schedule.steps) + 1 - begin)
    return kept
