"""Maximum mean discrepancy (MMD): how far apart two sets of samples lie, and a permutation test of the difference.

With a kernel k, the unbiased estimate from samples x and y is mean k(x, x') + mean k(y, y') - 2 mean k(x, y), each mean
over pairs of different samples. Its expectation is 0 for two sets of independent samples of one law, so it may be
negative. Arthur Gretton et al., A Kernel Two-Sample Test, 2012.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PermutationTest:
    """How two sets of samples differ, by group (a prompt), and how likely that is by chance."""

    mmd2: Floats
    """Unbiased MMD^2 of every group, float64 [groups]."""
    p: float
    """Share of relabellings whose mean MMD^2 is at least the one found, which counts as one of them."""


def gaussian_kernel(features: Floats) -> Floats:
    """exp(-d^2 / (2 m^2)) of all pairs of rows, float64 [n, n], from features [n, f].

    d is the distance of two rows, m the median of it over pairs of different rows (the median heuristic). Where more
    than half of the rows are equal, m is the mean distance; where all are, the kernel is 1.
    """
    # By differences: |x|^2 + |y|^2 - 2 xy leaves some 1e-8 of rounding between equal rows, and m may be that.
    pairs = pdist(features)
    width = float(np.median(pairs)) or float(pairs.mean())
    distances: Floats = squareform(pairs)
    return np.exp(-((distances / width) ** 2) / 2) if width else np.ones_like(distances)


def unbiased_mmd2(kernel: Floats, first: npt.NDArray[np.bool_]) -> Floats:
    """MMD^2 between the samples that are in the `first` set and the others, float64 [labellings].

    `kernel` is that of all pairs, [n, n], with ones on its diagonal; `first` is bool [labellings, n], and each set has
    at least two samples.
    """
    one, other = first.astype(np.float64), (~first).astype(np.float64)
    counts, rest = one.sum(axis=1), other.sum(axis=1)
    to_one, to_other = one @ kernel, other @ kernel
    within = ((to_one * one).sum(axis=1) - counts) / (counts * (counts - 1))
    without = ((to_other * other).sum(axis=1) - rest) / (rest * (rest - 1))
    return np.asarray(within + without - 2 * (to_one * other).sum(axis=1) / (counts * rest))


def permutation_test(
    ones: Sequence[Floats], others: Sequence[Floats], permutations: int = 1000, seed: int = 0
) -> PermutationTest:
    """Compares two sets of features in every group, each [n, f]; labels are exchanged within groups only.

    The kernel is Gaussian, its width that of each group's pooled features.
    """
    rng, found, relabelled = np.random.default_rng(seed), [], np.zeros(permutations)
    for one, other in zip(ones, others, strict=True):
        kernel = gaussian_kernel(np.concatenate([one, other]).astype(np.float64))
        labels = np.arange(len(kernel)) < len(one)
        found.append(unbiased_mmd2(kernel, labels[None])[0])
        relabelled += unbiased_mmd2(kernel, rng.permuted(np.tile(labels, (permutations, 1)), axis=1))
    mean = np.sum(found) - 1e-12  # sums of the same labels differ by rounding
    return PermutationTest(np.array(found), float((1 + (relabelled >= mean).sum()) / (1 + permutations)))
