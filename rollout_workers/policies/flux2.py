"""FLUX.2 dev and klein: tokens of a language model, patches of latents, and pictures to start from or none."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input
from PIL import Image
from transformers import AutoTokenizer

from ...proto.tree import Conditioning
from .base import Network
from .networks import JOINT_ATTENTION
from .pipeline import PipelinePolicy
from .prompt_encoding import as_message

REFERENCE_STEP = 10
"""First coordinate of a prompt's first picture; the next one has twice as much, and so on."""

MEGAPIXEL = 1024 * 1024


class Flux2Policy(PipelinePolicy):
    """`Flux2Pipeline`. A state is the patches of the latents of one picture, [channels, rows, columns]. Guidance is
    embedded.

    Pictures that come with a prompt are further patches, each with a first coordinate of its own.
    """

    pipeline_class = Flux2Pipeline
    spaces_levels = True
    classifier_free = False
    lora_modules = (*JOINT_ATTENTION, "attn.to_qkv_mlp_proj")
    encoding_parts = (*PipelinePolicy.encoding_parts, "vae")
    _patch = 2  # its configuration says 1: latents are patched before they reach the network

    @classmethod
    def replacements(cls, folder: Path) -> dict[str, Any]:
        """The tokenizer of its processor by itself: prompts are texts, and the processor needs torchvision."""
        return {"tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)}

    def as_encoded(self, prompt: str) -> str:
        """Mistral's chat around a prompt, without its first token, which the tokenizer puts there by itself."""
        (chat,) = format_input([str(prompt)], self.pipeline.system_message)
        text = self.pipeline.tokenizer.apply_chat_template(chat, tokenize=False)
        return str(text).removeprefix(self.pipeline.tokenizer.bos_token or "")

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, rows, columns] of patches."""
        return self.network.config.in_channels, *(size // self._patch for size in self.latent_size)

    def dynamic_shift(self, steps: int) -> float:
        """A fit of the authors, by tokens and steps."""
        return compute_empirical_mu(self.tokens, steps)

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """Every token's states in three of the encoder's layers, padding included."""
        embeds, _ = self.pipeline.encode_prompt(
            prompt, self.device, max_sequence_length=self.settings.max_sequence_length
        )
        return {"prompt_embeds": embeds[0]}

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of at most a megapixel in the policy's ratio, as diffusers rounds them."""
        height, width, grid = self.settings.height, self.settings.width, self.scale * self._patch
        shrunk = min(1.0, math.sqrt(MEGAPIXEL / (height * width)))
        return int(height * shrunk) // grid * grid, int(width * shrunk) // grid * grid

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity of patches; places have four coordinates, of which pictures use two and prompts the last. The
        guidance scale is an input where the network was distilled with one."""
        guidance = None
        if self.network.config.guidance_embeds:
            guidance = torch.full([len(latents)], self.settings.guidance_scale, device=latents.device)
        embeds, (_, rows, columns) = conditioning["prompt_embeds"], self.latent_shape
        pictures = [*conditioning["pictures"].unbind(1)] if "pictures" in conditioning else []
        grids = [_places(1, *state.shape[2:], 1) for state in (latents, *pictures)]
        layer = torch.tensor([REFERENCE_STEP, 0, 0, 0])
        drawn = torch.cat([grid + number * layer for number, grid in enumerate(grids)], dim=1)
        drawn = drawn.to(latents.device).expand(len(latents), -1, -1)
        states = [state.flatten(2).transpose(1, 2).to(self.precision) for state in (latents, *pictures)]
        said = _places(1, 1, 1, embeds.shape[1]).to(latents.device).expand(len(latents), -1, -1)
        velocity = network(
            hidden_states=torch.cat(states, dim=1),
            timestep=sigma.to(self.precision),
            guidance=guidance,
            encoder_hidden_states=embeds,
            txt_ids=said,
            img_ids=drawn,
            return_dict=False,
        )[0]
        return velocity[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures of patches that have the mean and the variance of the autoencoder's."""
        mean, std = (own.to(latents) for own in self._patch_statistics)
        return self.draw(torch.nn.functional.pixel_shuffle(latents * std + mean, self._patch))

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """The patches of their latents, [pictures, channels, rows, columns]."""
        mean, std = self._patch_statistics
        patches = torch.nn.functional.pixel_unshuffle(self.encode_pictures(pictures), self._patch)
        return {"pictures": (patches - mean.to(patches)) / std.to(patches)}

    @property
    def _patch_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of each channel of the autoencoder's patches, [channels, 1, 1]."""
        norm, epsilon = self.vae.bn, self.vae.config.batch_norm_eps
        return norm.running_mean.reshape(-1, 1, 1), torch.sqrt(norm.running_var + epsilon).reshape(-1, 1, 1)


class Flux2KleinPolicy(Flux2Policy):
    """`Flux2KleinPipeline`, with guidance from a second pass unless it is distilled."""

    pipeline_class = Flux2KleinPipeline
    classifier_free = True

    @classmethod
    def replacements(cls, folder: Path) -> dict[str, Any]:
        """No parts: the tokenizer is loaded as diffusers does it."""
        return {}

    def as_encoded(self, prompt: str) -> str:
        """Qwen's chat around a prompt."""
        return as_message(prompt, self.pipeline.tokenizer, thinking=False)

    @property
    def guided(self) -> bool:
        """Distilled models have their guidance within."""
        return super().guided and not self.pipeline.config.is_distilled


def _places(*sizes: int) -> torch.Tensor:
    """Coordinates of all places of a grid, int64 [1, places, coordinates]."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes))[None]
