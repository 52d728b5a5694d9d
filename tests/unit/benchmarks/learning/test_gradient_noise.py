"""How gradients agree: vectors whose signal and noise are known."""

import numpy as np
import pytest
import torch
from branchgrpo.benchmarks.learning.gradient_noise import noise_of


def test_equal_gradients_have_no_noise() -> None:
    found = noise_of([torch.tensor([3.0, 4.0])] * 4)
    assert found.cosine.value == pytest.approx(1.0)
    assert found.scale == pytest.approx(0.0, abs=1e-12)


def test_orthogonal_gradients_share_nothing() -> None:
    found = noise_of(list(torch.eye(5)))
    assert found.cosine.value == pytest.approx(0.0)
    assert found.scale == np.inf


def test_the_scale_is_noise_over_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.full((4000,), 0.1)  # squared norm 40
    found = noise_of([signal + 0.3 * torch.randn(4000, generator=generator) for _ in range(40)])  # noise 360
    assert found.scale == pytest.approx(360 / 40, rel=0.05)
    assert found.cosine.value == pytest.approx(0.1, rel=0.05)
    assert found.cosine.low < 0.1 < found.cosine.high
