"""Wan's noise levels."""

from pathlib import Path

import numpy as np
import pytest
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
