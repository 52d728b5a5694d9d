"""Where the nodes of a recorded tree are drawn: from left to right by depth, a row for every leaf."""

import io
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from ...proto.tree import FloatArray
from .tree_record import TreeRecord

WIDTH = 860
"""Width of all steps together, as far as the steps' limits allow."""
STEP = (16.0, 96.0)
"""Minimum and maximum width of a step."""
FOLDED, UNFOLDED = 7.0, 92.0
"""Where stretches without splits are folded: width of their steps, and of the others."""
ROWS = ((16, 46), (64, 30), (10**9, 20))
"""Height of a leaf's row, for trees with up to so many leaves."""
LEFT, TOP = 56.0, 40.0
"""Space before the roots, and above the first row."""
PREVIEW = 44.0
"""Maximum height of a split's picture."""


@dataclass(frozen=True)
class Layout:
    """Places in pixels."""

    x: list[float]
    """Horizontal place of every depth."""
    folded: list[float]
    """Horizontal place of every depth if stretches without splits are folded."""
    y: list[float]
    """Vertical place of every node."""
    row: float
    """Height of a leaf's row."""
    leaf: tuple[float, float]
    """Width and height of a leaf's picture."""
    splits: list[int]
    """Depths whose nodes are split."""

    def preview(self, leaves_below: int, aspect: float) -> tuple[float, float]:
        """Width and height of the picture of a split, which must not cover its neighbours."""
        ends = [*self.splits, len(self.x) - 1]
        room = 0.72 * min(own[after] - own[here] for own in (self.x, self.folded) for here, after in pairwise(ends))
        height = min(PREVIEW, max(self.row * leaves_below - 8, 12), room / aspect)
        return height * aspect, height


def layout(record: TreeRecord, aspect: float) -> Layout:
    """The places of a tree whose pictures are `aspect` times as wide as high."""
    depths, leaves = int(record.depth[-1]) + 1, record.leaves
    children = np.bincount(record.parent[record.parent >= 0], minlength=len(record.parent))
    splits = [int(depth) for depth in np.unique(record.depth[children > 1])]
    row = next(height for limit, height in ROWS if len(leaves) <= limit)
    step = float(np.clip(WIDTH / max(depths - 1, 1), *STEP))
    folded = np.cumsum([0.0, *(UNFOLDED if depth in splits else FOLDED for depth in range(depths - 1))])
    total, count = np.zeros(len(children)), np.zeros(len(children))
    total[leaves], count[leaves] = np.arange(len(leaves)) + 0.5, 1
    for node in range(len(children) - 1, -1, -1):
        if (parent := record.parent[node]) >= 0:
            total[parent] += total[node] / count[node]
            count[parent] += 1
    height = row - 6
    return Layout(
        x=[LEFT + step * depth for depth in range(depths)],
        folded=[LEFT + float(own) for own in folded],
        y=[TOP + row * float(own) for own in total / count],
        row=row,
        leaf=(height * aspect, height),
        splits=splits,
    )


def leaves_below(record: TreeRecord) -> list[int]:
    """Number of leaves below every node; 1 for leaves."""
    count = np.zeros(len(record.parent), dtype=int)
    count[record.leaves] = 1
    for node in range(len(count) - 1, -1, -1):
        if (parent := record.parent[node]) >= 0:
            count[parent] += count[node]
    return [int(own) for own in count]


def picture_aspect(record: TreeRecord) -> float:
    """Width over height of the tree's pictures; 1 if it has none that can be read."""
    for data in record.pictures.values():
        try:
            with Image.open(io.BytesIO(data)) as picture:
                return picture.width / picture.height
        except OSError:
            continue
    return 1.0


def split_nodes(record: TreeRecord) -> set[int]:
    """The nodes with several children."""
    return set(np.flatnonzero(np.bincount(record.parent[record.parent >= 0]) > 1).tolist())


def edge_levels(record: TreeRecord) -> FloatArray:
    """What the edges into nodes are coloured by, from -1 to 1, float64 [nodes]: their advantages as shares of the
    largest; where leaves alone are learned from, their merits.
    """
    if record.merit is None:
        return record.advantage / (float(np.abs(record.advantage).max()) or 1.0)
    levels = np.zeros(len(record.parent))
    levels[record.leaves] = np.nan_to_num(2 * record.merit - 1)
    return levels
