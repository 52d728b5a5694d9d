"""Depth-wise advantages: how much better a node is than the others of its depth."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..proto.schedule import Schedule
from ..proto.tree import FloatArray

Normaliser = Literal["depth", "leaf", "group"]

FLAT_SPREAD = 1e-6
"""A standard deviation below this share of the values' size is rounding of scores in float32, not a difference: the
advantage is exactly zero."""
EPSILON = 1e-12
"""Maximum rounding error of float64 arithmetic, relative to the size of the values."""


def depth_advantages(
    values: FloatArray, schedule: Schedule, normaliser: Normaliser, size: float | None = None
) -> tuple[FloatArray, FloatArray]:
    """Advantage of the edge into every node, and by how much rounding can have moved it; each float64 [nodes], zero
    where the edge isn't trained.

    A(n) = (value(n) - mean) / std over the nodes of n's depth (BranchGRPO, eq. 4). `depth` takes both from the nodes
    under the same root, `group` from those under all roots; `leaf` takes the mean as `depth` does and the std from that
    root's leaves. The std is the sample's (ddof 1). A depth with one node, or with equal values, gives exactly zero.

    Rounding is relative to `size`: the largest sum of absolute summands that a value was added up from (default: the
    largest absolute value).
    """
    size = float(np.abs(values).max()) if size is None else size
    advantages, rounding = np.zeros(schedule.nodes), np.zeros(schedule.nodes)
    for depth in schedule.trained_depths:
        nodes = slice(schedule.first_node[depth], schedule.first_node[depth + 1])
        advantages[nodes], rounding[nodes] = _normalised(values, nodes, schedule, normaliser, size)
    return advantages, rounding


def leaf_advantages(
    values: FloatArray, schedule: Schedule, normaliser: Normaliser, size: float | None = None
) -> tuple[FloatArray, FloatArray]:
    """Advantage of every leaf, and by how much rounding can have moved it; each float64 [leaves].

    `values` float64 [nodes]. Mean and std as in `depth_advantages`, whether or not the edges into leaves are trained.
    """
    size = float(np.abs(values).max()) if size is None else size
    leaves = slice(schedule.first_node[-2], schedule.nodes)
    return _normalised(values, leaves, schedule, normaliser, size)


def _normalised(
    values: FloatArray, nodes: slice, schedule: Schedule, normaliser: Normaliser, size: float
) -> tuple[FloatArray, FloatArray]:
    """Advantages of the `nodes` of one depth, and their rounding, each float64 [n]."""
    groups = 1 if normaliser == "group" else schedule.roots
    rows = values[nodes].reshape(groups, -1)
    if rows.shape[1] == 1:
        return np.zeros(groups), np.zeros(groups)
    own = scale = rows.std(axis=1, ddof=1, keepdims=True)
    if normaliser == "leaf":
        scale = values[schedule.first_node[-2] :].reshape(groups, -1).std(axis=1, ddof=1, keepdims=True)
    flat = (own <= FLAT_SPREAD * size) | (scale <= FLAT_SPREAD * size)
    centred = np.where(flat, 0.0, rows - rows.mean(axis=1, keepdims=True))
    scale = np.where(flat, 1.0, scale)
    return (centred / scale).ravel(), np.broadcast_to(EPSILON * size / scale, rows.shape).ravel()


def edge_weights(
    schedule: Schedule,
    kind: Literal["edge", "depth"],
    kept: npt.NDArray[np.bool_] | None = None,
    noise: Sequence[float] | None = None,
) -> FloatArray:
    """Share of every node's edge in one tree's objective, float64 [nodes]; the shares of `kept` edges add up to 1.

    `edge`: every kept edge counts the same, so depths with many nodes weigh more; `depth`: every depth the same. By
    default all trained edges are kept. Each share is then multiplied by the factor of its step in `noise`, float
    [steps], as in TempFlow-GRPO; so it matters which steps are trained, and the sum may be another.
    """
    kept = schedule.trained if kept is None else kept
    weights = kept.astype(np.float64)
    if kind == "depth":
        weights /= np.maximum(np.bincount(schedule.depth, weights=weights), 1)[schedule.depth]
    if total := weights.sum():
        weights /= total
    return weights if noise is None else weights * np.array([0.0, *noise])[schedule.depth]
