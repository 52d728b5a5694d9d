"""Gaussian noise as a function of counters: the same numbers in any process and any order.

Philox is a counter-based generator: (seed, iteration) is its key, (node, tree, stream) its counter, so that no two
uses overlap and nothing has to be remembered or advanced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from ..proto.methods import LOTS
from ..proto.schedule import IntArray, Schedule

if TYPE_CHECKING:
    import torch


class Stream(IntEnum):
    """The purpose of a node's noise."""

    START = 0
    """Starting latents of a root."""
    OWN = 1
    """The noise of the edge into a node."""
    SHARED = 2
    """The noise that the children of a node share."""
    PROMPTS = 3
    """The order of prompts, which belongs to no node."""
    SCHEDULE = LOTS
    """Lots that schedules draw (`proto/methods.py`)."""
    RENOISED = 5
    """The noise of a leaf that is noised anew. Its number is that of the leaf and its level together."""
    LEVEL = 6
    """The noise level of such a leaf."""
    FOCUS = 7
    """Which prompts are drawn by what they teach; it belongs to no node."""


def generator(seed: int, iteration: int, tree: int, node: int, stream: Stream) -> np.random.Generator:
    """The random numbers of one node for one purpose, from their beginning."""
    return np.random.Generator(np.random.Philox(key=[seed, iteration], counter=[0, node, tree, int(stream)]))


def gaussian(seed: int, iteration: int, tree: int, node: int, stream: Stream, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise of one node, float32 [*shape] on the CPU."""
    import torch

    drawn = generator(seed, iteration, tree, node, stream).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(drawn)


def edge_noise(
    seed: int, iteration: int, tree: int, node: int, schedule: Schedule, shape: Sequence[int]
) -> torch.Tensor:
    """The noise that a node was drawn with after its parent, standard normal, float32 [*shape] on the CPU."""
    own = gaussian(seed, iteration, tree, node, Stream.OWN, shape)
    parent = int(schedule.parent[node])
    if schedule.steps[int(schedule.depth[parent])].children == 1:
        return own
    return sibling_noise(gaussian(seed, iteration, tree, parent, Stream.SHARED, shape), own, schedule.sibling_spread)


def antithetic_sources(roots: IntArray) -> tuple[IntArray, IntArray]:
    """The root whose starting noise each of `roots` takes, and its sign, both int64 [n].

    The second of two neighbours takes the opposite of the first's.
    """
    return roots - roots % 2, 1 - 2 * (roots % 2)


def sibling_noise(shared: torch.Tensor, own: torch.Tensor, spread: float) -> torch.Tensor:
    """Noise of a split's children, xi_b = (xi_0 + s * eta_b) / sqrt(1 + s^2) (BranchGRPO, eq. 2).

    Each is standard normal by itself; two siblings correlate by 1 / (1 + s^2), from identical (s = 0) to independent
    (s = infinity). Any number of children; `shared` must broadcast to `own`.
    """
    if math.isinf(spread):
        return own
    return (shared + spread * own) / math.sqrt(1 + spread**2)
