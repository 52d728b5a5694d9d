"""Scales of classifier-free guidance that a model doesn't take."""

from pathlib import Path
from typing import Any

import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.rollout_workers.policies.base import with_guidance
from branchgrpo.rollout_workers.policies.load import load_policy
from plain_diffusers import policy_of


@pytest.mark.parametrize(
    ("family", "changes", "name"),
    [
        ("HunyuanVideo 1.5", {"guidance_scale": 0.5}, "guidance_scale"),
        ("Wan 2.2 14B", {"guidance_scale": 3.0, "guidance_scale_2": 0.0}, "guidance_scale_2"),
        ("LTX-2", {"guidance_scale": 3.0, "guidance_scale_2": 0.0}, "guidance_scale_2"),
        ("LTX-2", {"guidance_scale": 0.0, "guidance_scale_2": 3.0}, "guidance_scale"),
    ],
)
def test_a_scale_that_would_draw_the_negative_prompt_is_refused(
    family: str, changes: dict[str, Any], name: str, tmp_path: Path
) -> None:
    settings = policy_of(family, tmp_path / "pipeline").model_copy(update=changes)
    with pytest.raises(InputError, match=rf"policy\.{name} is {changes[name]}; .* it must be 1 or more"):
        load_policy(settings, network_only=True)
    neutral = settings.model_copy(update={name: 1.0})
    load_policy(neutral, network_only=True)


def test_evaluations_take_no_such_scale_either(tmp_path: Path) -> None:
    policy = load_policy(policy_of("HunyuanVideo 1.5", tmp_path / "pipeline"), network_only=True)
    with pytest.raises(InputError, match=r"evaluation\.guidance_scale is 0\.0; .* it must be 1 or more"):
        with_guidance(policy, 0.0)
