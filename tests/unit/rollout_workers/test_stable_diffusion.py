"""Stable Diffusion: what of its pipelines is refused."""

import json
from pathlib import Path

import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.rollout_workers.policies.load import load_policy
from diffusers import EDMEulerScheduler, UNet2DConditionModel
from plain_diffusers import policy_of


def test_noise_levels_of_edm_are_refused(tmp_path: Path) -> None:
    settings, index = policy_of("SDXL", tmp_path / "pipeline"), tmp_path / "pipeline" / "model_index.json"
    EDMEulerScheduler().save_pretrained(tmp_path / "pipeline" / "scheduler")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", "EDMEulerScheduler"]}))
    with pytest.raises(InputError, match="whose scheduler has sigma_data: its noise levels are EDM's"):
        load_policy(settings)


@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
def test_networks_distilled_with_their_guidance_are_refused(family: str, tmp_path: Path) -> None:
    settings, unet = policy_of(family, tmp_path / "pipeline"), tmp_path / "pipeline" / "unet"
    config = UNet2DConditionModel.load_config(unet)
    UNet2DConditionModel.from_config(config, time_cond_proj_dim=8).save_pretrained(unet)
    with pytest.raises(InputError, match=r"distilled to a few steps \(time_cond_proj_dim is 8\)"):
        load_policy(settings)
