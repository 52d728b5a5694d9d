"""A learner's account of a tree: what every edge was worth, and whether it was trained."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from .tree import FloatArray


class EdgeState(IntEnum):
    """What the learner did with the edge into a node."""

    ROOT = 0
    """No edge leads there."""
    UNTRAINED = 1
    """The schedule doesn't train it, as it is with every deterministic step."""
    PRUNED = 2
    """Pruning left it out."""
    SKIPPED = 3
    """Its advantage is exactly zero, so it adds nothing to the gradient."""
    TRAINED = 4
    """It entered the gradient."""


@dataclass(frozen=True)
class LearnedTree:
    """The figures of one tree, as the learner used them. Leaves stand in the place of edges if they alone are learned
    from."""

    number: int
    values: FloatArray
    """Value of every node, fused from the leaves below it, float64 [nodes]."""
    advantages: FloatArray
    """Advantage of the edge into every node, float64 [nodes]."""
    weights: FloatArray
    """Share of every node's edge in the tree's objective, float64 [nodes]."""
    states: npt.NDArray[np.uint8]
    """The `EdgeState` of every node, uint8 [nodes]."""
    ratios: FloatArray
    """exp(new - old log-probability) of every trained edge before its update's step, float64 [nodes]; NaN where none
    was computed."""
    merits: FloatArray | None
    """If leaves alone are learned from, how good each is among those it is compared with, from 0 to 1, float64
    [leaves]."""
    sigmas: FloatArray
    """Noise level of every depth, float64 [depths]."""

    def joined(self, other: "LearnedTree") -> "LearnedTree":
        """This tree with the ratios of `other` too: another rank's, which has worked on other edges."""
        ratios = np.where(np.isnan(self.ratios), other.ratios, self.ratios)
        return LearnedTree(**vars(self) | {"ratios": ratios})
