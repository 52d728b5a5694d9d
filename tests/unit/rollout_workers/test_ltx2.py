"""LTX-2: the clip and the sound of a state, and what of its pipeline is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.pictures import Picture
from branchgrpo.proto.prompt import Prompt
from branchgrpo.rollout_workers.policies.base import collate
from branchgrpo.rollout_workers.policies.load import load_policy
from PIL import Image
from plain_diffusers import plain, policy_of, prompts_of


@torch.no_grad()
def test_the_clip_and_the_sound_see_each_other_and_have_scales(tmp_path: Path) -> None:
    settings = policy_of("LTX-2", tmp_path / "pipeline")
    policy = load_policy(settings)
    state, sigma = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5])
    conditioning, clip = collate([policy.encode("12")]), policy.tokens
    velocity = policy.velocity(state, sigma, conditioning)
    for changed, other in ((slice(clip), slice(clip, None)), (slice(clip, None), slice(clip))):
        moved = state.clone()
        moved[:, changed] += 1
        assert not torch.equal(policy.velocity(moved, sigma, conditioning)[:, other], velocity[:, other])
    louder = load_policy(settings.model_copy(update={"guidance_scale_2": 7.0}))
    scaled = louder.velocity(state, sigma, conditioning)
    assert torch.equal(scaled[:, :clip], velocity[:, :clip])
    assert not torch.equal(scaled[:, clip:], velocity[:, clip:])
    decoded = policy.decode(state)
    assert (decoded.frame_rate, decoded.sample_rate) == (24.0, 1600)
    seconds = settings.frames / decoded.frame_rate
    assert decoded.sound is not None
    assert decoded.sound.shape[2] / decoded.sample_rate == pytest.approx(seconds, abs=0.05)


@torch.no_grad()
def test_a_folder_of_clips_from_texts_begins_with_pictures_too(tmp_path: Path) -> None:
    """The published folders name the pipeline from texts."""
    settings = policy_of("LTX-2, picture", tmp_path / "pipeline")
    (prompt, _), index = prompts_of("LTX-2, picture"), tmp_path / "pipeline" / "model_index.json"
    from_picture = load_policy(settings)
    index.write_text(index.read_text().replace("LTX2ImageToVideoPipeline", "LTX2Pipeline"))
    policy = load_policy(settings)
    state, sigma = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5])
    with_it, without = (collate([policy.encode(given)]) for given in (prompt, str(prompt)))
    velocity = policy.velocity(state, sigma, with_it)
    assert torch.equal(velocity, from_picture.velocity(state, sigma, collate([from_picture.encode(prompt)])))
    assert not torch.allclose(velocity, policy.velocity(state, sigma, without))
    first = with_it["first_frame"].shape[1]
    assert torch.allclose(state[:, :first] - sigma * velocity[:, :first], with_it["first_frame"].float(), atol=1e-6)


@torch.no_grad()
def test_a_picture_is_compressed_before_it_is_scaled(tmp_path: Path) -> None:
    """As diffusers does when it is given the original, and starts from noise of its own."""
    settings, pipeline = policy_of("LTX-2, picture", tmp_path / "pipeline"), plain(str(tmp_path / "pipeline"))
    pixels = np.random.default_rng(0).integers(0, 256, (5 * settings.height, 5 * settings.width, 3), np.uint8)
    sizes = {"height": settings.height, "width": settings.width, "num_frames": settings.frames}
    drawn, _ = pipeline(
        image=Image.fromarray(pixels),
        prompt="1",
        **sizes,
        num_inference_steps=2,
        max_sequence_length=settings.max_sequence_length,
        output_type="latent",
        return_dict=False,
    )
    policy: Any = load_policy(settings)
    first = policy.encode(Prompt("1", pictures=[Picture("own", pixels)]))["first_frame"]
    vae = policy.vae
    z = first * vae.latents_std / vae.config.scaling_factor + vae.latents_mean
    torch.testing.assert_close(z.T.float(), drawn[0, :, 0].flatten(1))


def test_what_is_not_supported_is_refused(tmp_path: Path) -> None:
    settings = policy_of("LTX-2", tmp_path / "pipeline")
    with pytest.raises(InputError, match="policy.max_sequence_length is 6; this model takes multiples of 4"):
        load_policy(settings.model_copy(update={"max_sequence_length": 6}), network_only=True)
    file = tmp_path / "pipeline" / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"timestep_conditioning": True}))
    with pytest.raises(InputError, match="whose autoencoder adds noise"):
        load_policy(settings, network_only=True)
