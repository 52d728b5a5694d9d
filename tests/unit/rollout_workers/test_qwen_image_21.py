"""Qwen-Image 2.1: prompts of different lengths side by side, noise levels of its own, and a LoRA to start from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.cluster.commands.publish import usage
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.schedule import ode_schedule
from branchgrpo.proto.settings import PolicySettings, RolloutSettings
from branchgrpo.proto.tree import Task
from branchgrpo.rollout_workers.policies.base import collate
from branchgrpo.rollout_workers.policies.decoded import Decoded
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from families import as_lora, with_pictures
from plain_diffusers import PROMPTS, STEPS, plain, policy_of, starts, theirs
from support import Settings


@pytest.fixture
def settings(tmp_path: Path) -> PolicySettings:
    return policy_of("Qwen-Image 2.1", tmp_path / "pipeline")


def drawn(settings: PolicySettings, steps: int) -> np.ndarray:
    policy = load_policy(settings)
    task = Task(iteration=0, trees=(0, 1), prompts=PROMPTS, schedule=ode_schedule(steps), seed=5)
    parts = list(RolloutWorker(policy, RolloutSettings()).sample(task))
    return np.asarray(Decoded.of(policy.decode(torch.stack([part.latents[-1] for part in parts]))).pictures)


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_row_is_what_diffusers_computes_of_it_alone(settings: PolicySettings, count: int) -> None:
    """Whatever it is padded to, and whatever is beside it; with pictures, too."""
    policy: Any = load_policy(settings.model_copy(update={"guidance_scale": 1.0, "max_sequence_length": 140}))
    prompts = with_pictures(("7", "1234567"), count)
    states = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.9, 0.4])
    together = policy.velocity(states, sigma, collate([policy.encode(prompt) for prompt in prompts]))
    pipeline = plain(settings.pretrained)
    for row, prompt in enumerate(prompts):
        pictures = policy.pictures_of(prompt)
        embeds, mask, slots = pipeline.encode_prompt(str(prompt), image=pictures or None)
        assert mask is None
        pixels = [pipeline.image_processor.preprocess(own.convert("RGBA")).unsqueeze(2) for own in pictures]
        size = 1, policy.latent_shape[1], *policy.latent_size, torch.float32, "cpu", None
        _, before = pipeline.prepare_latents(pixels or None, *size)
        alone = pipeline.transformer(
            hidden_states=states[[row]] if before is None else torch.cat([before, states[[row]]], dim=1),
            timestep=sigma[[row]],
            encoder_hidden_states=embeds,
            img_shapes=[[(1, *policy.latent_size)] * (1 + count)],
            img_mask=torch.cat([slots, slots.new_ones(1, policy.tokens // 4)], dim=1),
        ).sample[:, -policy.tokens :]
        torch.testing.assert_close(together[[row]], alone, atol=1e-5, rtol=1e-4)


def test_pictures_must_fit_into_the_length_of_a_prompt(settings: PolicySettings) -> None:
    (prompt,) = with_pictures(("7",), 2)
    assert load_policy(settings.model_copy(update={"max_sequence_length": 80})).encode(prompt)
    policy = load_policy(settings.model_copy(update={"max_sequence_length": 40}))
    with pytest.raises(InputError, match=r"policy\.max_sequence_length is 40; this prompt's pictures alone take \d\d"):
        policy.encode(prompt)


def test_a_model_of_few_steps_is_drawn_by_its_own_noise_levels(settings: PolicySettings) -> None:
    index = Path(settings.pretrained) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sample_sigmas": [1.0, 0.9, 0.5]}))
    policy = load_policy(settings)
    reference = theirs(plain(settings.pretrained), settings, starts(policy, 5))
    np.testing.assert_allclose(drawn(settings, 3), reference, atol=1e-4)
    with pytest.raises(InputError, match=r"schedule\.steps \(or evaluation\.steps\) is 4; .* it must be 3"):
        policy.sigmas(4)


def test_a_lora_to_start_from_is_in_what_is_drawn(settings: PolicySettings, tmp_path: Path) -> None:
    pipeline = plain(settings.pretrained)
    file = as_lora(pipeline, tmp_path / "lora")
    noise = starts(load_policy(settings), 5)
    found = drawn(PolicySettings.model_validate(settings.model_dump() | {"start_from": str(file)}), STEPS)
    np.testing.assert_allclose(found, theirs(pipeline, settings, noise), atol=1e-4)
    assert np.abs(found - drawn(settings, STEPS)).max() > 0.01


def test_a_model_card_keeps_guidance_without_a_negative_prompt(
    settings: PolicySettings, run_settings: Settings
) -> None:
    for scale, guided in ((3.0, True), (1.0, False)):
        own = settings.model_copy(update={"guidance_scale": scale, "negative_prompt": ""})
        code = usage(run_settings({"policy": own.model_dump()}), load_policy(own, network_only=True))
        assert f"true_cfg_scale={scale}" in code
        assert ("negative_prompt=''" in code) == guided


def test_what_is_transparent_is_white(settings: PolicySettings) -> None:
    policy: Any = load_policy(settings)
    last = policy.vae.decoder.conv_out
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-1.0, 0.0, 0.2, -0.5]))  # black, half and 0.6, of which a quarter is seen
    pictures = policy.decode(torch.zeros(1, *policy.latent_shape))
    assert pictures.shape == (1, settings.height, settings.width, 3)
    torch.testing.assert_close(pictures[0, 3, 5], torch.tensor([0.75, 0.875, 0.9]))
