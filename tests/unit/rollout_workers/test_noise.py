"""Noise is a function of its counters, and siblings correlate as they should."""

import math

import numpy as np
import pytest
import torch
from branchgrpo.rollout_workers.noise import Stream, antithetic_sources, gaussian, sibling_noise

SHAPE = (64, 1024)
N = math.prod(SHAPE)
Z = 6.0  # a fixed-seed estimate strays by more than 6 standard errors once in 500 million


def test_the_same_counters_give_the_same_noise_in_any_order() -> None:
    first = gaussian(1, 2, 3, 4, Stream.OWN, (5,))
    gaussian(9, 9, 9, 9, Stream.OWN, (500,))
    torch.manual_seed(0)
    assert torch.equal(gaussian(1, 2, 3, 4, Stream.OWN, (5,)), first)
    assert first.dtype == torch.float32


def test_every_counter_matters() -> None:
    counters = [(1, 2, 3, 4, Stream.OWN)]
    counters += [(9, 2, 3, 4, Stream.OWN), (1, 9, 3, 4, Stream.OWN), (1, 2, 9, 4, Stream.OWN), (1, 2, 3, 9, Stream.OWN)]
    counters += [
        (1, 2, 3, 4, Stream.START),
        (1, 2, 3, 4, Stream.SHARED),
        (2, 1, 3, 4, Stream.OWN),
        (1, 2, 4, 3, Stream.OWN),
    ]
    drawn = {tuple(gaussian(*counter, (4,)).tolist()) for counter in counters}
    assert len(drawn) == len(counters)


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, math.inf])
@pytest.mark.parametrize("children", [2, 3, 4])
def test_siblings_are_standard_normal_and_correlate(spread: float, children: int) -> None:
    shared = gaussian(0, 0, 0, 0, Stream.SHARED, SHAPE)
    own = torch.stack([gaussian(0, 0, 0, child, Stream.OWN, SHAPE) for child in range(children)])
    noise = sibling_noise(shared, own, spread).flatten(1).double()
    correlation = 0.0 if math.isinf(spread) else 1 / (1 + spread**2)
    for i in range(children):
        assert abs(noise[i].mean()) < Z / math.sqrt(N)
        assert abs(noise[i].var() - 1) < Z * math.sqrt(2 / N)
        for j in range(i):
            error = Z * math.sqrt((1 + correlation**2) / N)
            assert abs((noise[i] * noise[j]).mean() - correlation) < error


def test_roots_take_turns_in_pairs_and_an_odd_one_is_alone() -> None:
    sources, signs = antithetic_sources(np.arange(5))
    assert sources.tolist() == [0, 0, 2, 2, 4]
    assert signs.tolist() == [1, -1, 1, -1, 1]
