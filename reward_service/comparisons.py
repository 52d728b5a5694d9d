"""Comparisons of the leaves of a prompt, two at a time, and the scores that come of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Pair = tuple[int, int]
"""Numbers of the leaf that is shown first, and of the one that is shown second."""


def pairings(prompts: Sequence[str], opponents: int) -> list[Pair]:
    """The pairs of leaves to compare; `prompts` has the prompt of each leaf.

    Each leaf comes first with so many of its prompt's leaves that follow it in a ring, and so second as often. With all
    others as opponents every two leaves are compared both ways.
    """
    rings: dict[str, list[int]] = {}
    for leaf, prompt in enumerate(prompts):
        rings.setdefault(prompt, []).append(leaf)
    return [
        (leaf, ring[(place + step) % len(ring)])
        for ring in rings.values()
        for place, leaf in enumerate(ring)
        for step in range(1, min(opponents, len(ring) - 1) + 1)
    ]


def mean_shares(pairs: Sequence[Pair], grades: Sequence[float], leaves: int) -> npt.NDArray[np.float64]:
    """Mean grade in favour of each leaf, float64 [leaves]; 0.5 for one without opponents.

    A grade, from 0 to 1, is the first leaf's share in its pair; the rest is the second's.
    """
    shares, count = np.zeros(leaves), np.zeros(leaves)
    for (first, second), grade in zip(pairs, grades, strict=True):
        shares[[first, second]] += grade, 1 - grade
        count[[first, second]] += 1
    return np.divide(shares, count, out=np.full(leaves, 0.5), where=count > 0)
