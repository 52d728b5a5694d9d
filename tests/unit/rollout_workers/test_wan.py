"""Wan's noise levels, and how fast its clips are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.rollout_workers.policies.load import load_policy
from diffusers import UniPCMultistepScheduler
from plain_diffusers import policy_of


def test_noise_levels_are_the_published_schedulers(tmp_path: Path) -> None:
    settings = policy_of("Wan 2.1", tmp_path / "pipeline")  # whose shift is 3
    for shift, own in ((3.0, None), (5.0, 5.0)):
        policy = load_policy(settings.model_copy(update={"shift": own}), network_only=True)
        published = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift)
        for steps in (4, 16, 50):
            published.set_timesteps(steps)
            assert policy.sigmas(steps) == pytest.approx(published.sigmas.tolist())
    even = np.linspace(1, 0.25, 4)  # to which networks are distilled
    assert policy.sigmas(4) == pytest.approx([*(5 * even / (1 + 4 * even)), 0], abs=2e-3)


@pytest.mark.parametrize(("family", "rate"), [("Wan 2.1", 16.0), ("Wan 2.2 14B", 16.0), ("Wan 2.2 5B", 24.0)])
def test_clips_are_as_fast_as_published(family: str, rate: float, tmp_path: Path) -> None:
    policy: Any = load_policy(policy_of(family, tmp_path / "pipeline"))
    decoded = policy.decode(torch.zeros(1, *policy.latent_shape))
    assert decoded.frame_rate == rate
