"""Qwen-Image-Edit: what of the pictures and of the instruction reaches the network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from branchgrpo.cluster.commands.publish import usage
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import Prompt, pictures_of
from branchgrpo.rollout_workers.policies.base import collate
from branchgrpo.rollout_workers.policies.load import FAMILIES as POLICIES
from branchgrpo.rollout_workers.policies.load import find_policy, load_policy
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as published
from families import with_pictures
from plain_diffusers import plain, policy_of
from support import Settings


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "pictures", "tokens"), [("Qwen-Image-Edit", 1, 1369), ("Qwen-Image-Edit Plus", 3, 3 * 196)]
)
def test_an_instruction_is_read_after_pictures_of_full_size(
    family: str, pictures: int, tokens: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(published, "VAE_IMAGE_SIZE", 1024**2)  # as they are without the tests
    monkeypatch.setattr(published, "CONDITION_IMAGE_SIZE", 384**2)
    settings = policy_of(family, tmp_path / "pipeline").model_copy(update={"height": 16, "width": 16})
    file = tmp_path / "pipeline" / "processor" / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["size"]["longest_edge"] = 12845056  # as published
    file.write_text(json.dumps(config))
    most = next(own.max_sequence_length for own in POLICIES.values() if own.adapter == find_policy(settings)[1])

    policy: Any = load_policy(settings.model_copy(update={"max_sequence_length": most, "guidance_scale": 1.0}))
    (prompt,) = with_pictures(("make it red",), pictures)
    seen = [policy.pipeline.image_processor.resize(own, *policy.seen_size) for own in policy.pictures_of(prompt)]
    reference, _ = plain(settings.pretrained).encode_prompt(str(prompt), image=seen)
    conditioning = policy.embed(prompt)
    kept = conditioning["prompt_embeds"][conditioning["prompt_embeds_mask"]]
    torch.testing.assert_close(kept, reference[0])
    assert tokens < len(kept) < most
    other = policy.embed(Prompt("make it blue", pictures=pictures_of(prompt)))["prompt_embeds"]
    assert not torch.equal(conditioning["prompt_embeds"], other)

    conditioning["pictures"] = torch.zeros(0, 16)  # those of full size would take their time
    states = torch.zeros(1, *policy.latent_shape)
    assert policy.velocity(states, torch.tensor([0.5]), collate([conditioning])).isfinite().all()  # with so many places

    short = load_policy(settings.model_copy(update={"max_sequence_length": tokens}))
    with pytest.raises(InputError, match=rf"max_sequence_length is {tokens}; this prompt's pictures alone take \d+"):
        short.encode(prompt)


def test_a_model_card_gives_no_length_which_diffusers_refuses(run_settings: Settings, tmp_path: Path) -> None:
    settings = policy_of("Qwen-Image-Edit", tmp_path / "pipeline").model_copy(update={"max_sequence_length": 2048})
    policy: Any = load_policy(settings, network_only=True)
    run = run_settings({"policy": settings.model_dump(), "prompts.picture_column": "image"})
    assert "max_sequence_length" not in usage(run, policy)
