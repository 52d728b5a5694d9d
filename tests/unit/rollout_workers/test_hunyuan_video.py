"""HunyuanVideo 1.5: what of its pipeline is refused, and what of a prompt its network sees."""

import json
from pathlib import Path

import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.rollout_workers.policies.base import collate
from branchgrpo.rollout_workers.policies.load import load_policy
from plain_diffusers import policy_of
from small_pipelines.hunyuan_video import hunyuan_video


def changed(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_other_guiders_and_networks_are_refused(tmp_path: Path) -> None:
    settings = policy_of("HunyuanVideo 1.5", tmp_path / "pipeline")
    guider = tmp_path / "pipeline" / "guider" / "guider_config.json"
    with pytest.raises(InputError, match="policy.frames is 6; this model makes one frame more than a multiple of 4"):
        load_policy(settings.model_copy(update={"frames": 6}), network_only=True)
    changed(guider, guidance_rescale=0.5)
    with pytest.raises(InputError, match=r"guider is a ClassifierFreeGuidance with \{'guidance_rescale': 0.5\}"):
        load_policy(settings, network_only=True)
    hunyuan_video(meanflow=True).save_pretrained(tmp_path / "distilled")
    with pytest.raises(InputError, match="distilled to a few steps"):
        load_policy(settings.model_copy(update={"pretrained": str(tmp_path / "distilled")}), network_only=True)


@torch.no_grad()
def test_padding_changes_nothing_and_quoted_words_do(tmp_path: Path) -> None:
    settings = policy_of("HunyuanVideo 1.5", tmp_path / "pipeline")
    policy = load_policy(settings)
    state, sigma = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5])
    longer = load_policy(settings.model_copy(update={"max_sequence_length": 1000}))
    own, other = (each.velocity(state, sigma, collate([each.encode("12")])) for each in (policy, longer))
    torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    quoted, plain = policy.encode('1 "ab"'), policy.encode("1 ab")
    assert quoted["letter_mask"].sum() > plain["letter_mask"].sum() == 0
    without = quoted | {name: plain[name] for name in ("letter_embeds", "letter_mask")}
    assert not torch.equal(*(policy.velocity(state, sigma, collate([each])) for each in (quoted, without)))
