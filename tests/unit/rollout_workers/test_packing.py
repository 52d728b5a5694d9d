"""Packing against what diffusers' own pipelines do."""

import torch
from branchgrpo.rollout_workers.policies.packing import packed, token_places, unpacked
from diffusers import FluxPipeline, QwenImagePipeline

LATENTS = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_tokens_are_those_of_diffusers() -> None:
    tokens = packed(LATENTS)
    assert torch.equal(tokens, FluxPipeline._pack_latents(LATENTS, *LATENTS.shape))
    assert torch.equal(tokens, QwenImagePipeline._pack_latents(LATENTS, *LATENTS.shape))


def test_unpacking_undoes_packing() -> None:
    tokens = packed(LATENTS)
    assert torch.equal(unpacked(tokens, 4, 6), LATENTS)
    assert torch.equal(FluxPipeline._unpack_latents(tokens, 32, 48, 8), LATENTS)
    assert torch.equal(QwenImagePipeline._unpack_latents(tokens, 32, 48, 8)[:, :, 0], LATENTS)


def test_places_are_those_of_diffusers() -> None:
    device = torch.device("cpu")
    expected = FluxPipeline._prepare_latent_image_ids(1, 2, 3, device, torch.bfloat16)
    places = token_places(4, 6, device, torch.bfloat16)
    assert places.dtype == expected.dtype
    assert torch.equal(places, expected)
