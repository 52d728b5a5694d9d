"""MMD^2 by hand, for Gaussians, and a permutation test whose p-values are uniform where nothing differs."""

import math

import numpy as np
import pytest
from branchgrpo.cluster.study.mmd import gaussian_kernel, permutation_test, unbiased_mmd2
from scipy import stats


def looped(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased MMD^2 as its definition says, pair by pair."""
    pooled = [*one, *other]
    distances = [math.dist(a, b) for i, a in enumerate(pooled) for b in pooled[:i]]
    width = float(np.median(distances))

    def mean(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return sum(math.exp(-(math.dist(a, b) ** 2) / (2 * width**2)) for a, b in pairs) / len(pairs)

    def within(samples: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(a, b) for i, a in enumerate(samples) for j, b in enumerate(samples) if i != j]

    return mean(within(one)) + mean(within(other)) - 2 * mean([(a, b) for a in one for b in other])


def test_the_estimate_is_that_of_two_loops() -> None:
    rng = np.random.default_rng(0)
    groups = [(rng.normal(size=(5, 3)), rng.normal(0.5, 2, size=(7, 3))) for _ in range(4)]
    found = permutation_test(*zip(*groups, strict=True), permutations=1).mmd2
    assert found == pytest.approx([looped(*group) for group in groups])


def test_shifted_gaussians_have_the_known_distance() -> None:
    """For N(0, I) and N(m, I) in d dimensions and width w, MMD^2 is 2 (w^2 / (w^2 + 2))^(d/2) times
    1 - exp(-|m|^2 / (2 (w^2 + 2)))."""
    rng, d, n, shift = np.random.default_rng(1), 2, 1500, np.array([1.0, 0.5])
    one, other = rng.normal(size=(n, d)), rng.normal(size=(n, d)) + shift
    pooled = np.concatenate([one, other])
    width = np.median(np.linalg.norm(pooled[:, None] - pooled, axis=2)[np.triu_indices(2 * n, 1)])
    factor = 2 * (width**2 / (width**2 + 2)) ** (d / 2)
    expected = factor * (1 - math.exp(-(shift @ shift) / (2 * (width**2 + 2))))
    (found,) = unbiased_mmd2(gaussian_kernel(pooled), (np.arange(2 * n) < n)[None])
    assert found == pytest.approx(expected, abs=0.01)
    assert expected > 0.1


def test_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(2)
    tests = [
        permutation_test(rng.normal(size=(3, 6, 2)), rng.normal(size=(3, 6, 2)), permutations=99, seed=seed)
        for seed in range(400)
    ]
    assert stats.kstest([test.p for test in tests], "uniform").pvalue > 0.01
    means = np.array([test.mmd2.mean() for test in tests])
    assert abs(means.mean()) < 4 * means.std() / math.sqrt(len(means))  # unbiased


def test_what_differs_gets_the_smallest_p() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(4, 8, 2)), rng.normal(3, 1, size=(4, 8, 2))
    assert permutation_test(one, other, permutations=199).p == 1 / 200
    assert permutation_test(one, other, permutations=199).p == permutation_test(one, other, permutations=199).p


def test_equal_samples_do_not_differ() -> None:
    same = [np.ones((4, 3))]
    test = permutation_test(same, same, permutations=50)
    assert (test.mmd2.tolist(), test.p) == ([0.0], 1.0)


@pytest.mark.parametrize("features", [12, 192, 768])
def test_equal_rows_are_at_no_distance(features: int) -> None:
    """Of many unit rows, for rounding shows in some only."""
    rng = np.random.default_rng(4)
    for row in rng.random((50, 1, features)):
        equal = np.repeat(row / np.linalg.norm(row), 14, axis=0)
        kernel = gaussian_kernel(np.concatenate([equal, rng.random((2, features))]))
        assert (kernel[:14, :14] == 1).all()
        assert (kernel[:14, 14:] < 0.5).all(), "the width is the mean distance, where more than half are equal"
