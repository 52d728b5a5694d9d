"""FLUX.1-dev at full size with random weights, and a small one of its kind to try a benchmark with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPVisionConfig, T5Config

from ...cluster.plan.reward_shapes import VIT_H
from ...proto.settings import PolicySettings
from ...proto.tree import Conditioning
from ...rollout_workers.policies.attention import leave_out_cudnn
from ...rollout_workers.policies.compiling import compile_network
from ...rollout_workers.policies.flux import FluxPolicy
from ...rollout_workers.policies.start import Start
from .model_sizes import CLIP_L, T5_XXL, TEXT_TOKENS, VAE_BLOCKS, clip_text, flux_autoencoder, flux_parts


@dataclass(frozen=True)
class Scale:
    """The sizes of the network, the pictures and the tree."""

    network: dict[str, Any]
    vae_blocks: list[int]
    pixels: int
    tokens: int
    """Number of a prompt's tokens."""
    clip: CLIPTextConfig
    t5: T5Config
    tower: CLIPVisionConfig
    """The picture tower of the reward model."""

    def parts(self) -> dict[str, Any]:
        """The pipeline's networks, with random weights."""
        return flux_parts(self.network, self.vae_blocks, self.clip, self.t5)


FULL_SCALE = Scale({}, VAE_BLOCKS, 720, TEXT_TOKENS, CLIP_L, T5_XXL, VIT_H)
TINY_SCALE = Scale(
    {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (2, 2, 4),
    },
    [8, 8],
    32,
    4,
    clip_text(8, 16, 2, 1),
    T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"),
    CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    ),
)


@contextmanager
def made_in(precision: torch.dtype) -> Iterator[None]:
    """Have new weights be made in this precision: in another first, the largest network would fill the card."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class RandomFlux(FluxPolicy):
    """FLUX.1-dev with random weights and made-up prompts."""

    def __init__(self, scale: Scale, device: torch.device, *, compiled: bool) -> None:
        self.device, self.precision, self._scale = device, torch.bfloat16, scale
        self.start = Start()
        leave_out_cudnn()
        self.settings = PolicySettings(pretrained="random", height=scale.pixels, width=scale.pixels)
        with torch.device(device), made_in(torch.bfloat16):
            self.network = FluxTransformer2DModel(**{"guidance_embeds": True, **scale.network})
            vae = flux_autoencoder(scale.vae_blocks, self.network.config.in_channels // 4)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        parts = {"transformer": self.network, "vae": vae.requires_grad_(False), "scheduler": scheduler}
        self.pipeline: Any = SimpleNamespace(components=parts, **parts)
        self.autoencoder = {"block_out_channels": scale.vae_blocks}
        if compiled:
            compile_network(self.network)

    def encode(self, prompt: str) -> Conditioning:
        scale = self._scale
        make = {"device": self.device, "dtype": self.precision}
        return {
            "prompt_embeds": torch.randn(scale.tokens, scale.t5.d_model, **make),
            "pooled_prompt_embeds": torch.randn(scale.clip.hidden_size, **make),
        }
