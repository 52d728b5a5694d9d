"""The Flux family: FLUX.1-dev, FLUX.1-schnell, FLUX.1 Kontext and the embedded policies."""

from collections.abc import Sequence

import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from PIL import Image

from ...proto.tree import Conditioning
from .base import Network
from .packing import PATCH, packed, token_places, unpacked
from .pipeline import PipelinePolicy


class FluxPolicy(PipelinePolicy):
    """`FluxPipeline`. A state is the packed latents of one picture, [tokens, channels]. Guidance is embedded."""

    pipeline_class = FluxPipeline
    spaces_levels = True
    classifier_free = False
    tokenizer = "tokenizer_2"
    _patch = PATCH  # its configuration says 1: latents are packed before they reach the network

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[tokens, channels]: a token is a patch of latents."""
        rows, columns = self.latent_size
        return rows * columns // self._patch**2, self.network.config.in_channels

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """T5's embedding of every token, and CLIP's of the whole prompt."""
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, max_sequence_length=self.settings.max_sequence_length
        )
        return {"prompt_embeds": embeds[0], "pooled_prompt_embeds": pooled[0]}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity, with the guidance scale as an input where the network was distilled with one."""
        embeds, device = conditioning["prompt_embeds"], latents.device
        guidance = None
        if self.network.config.guidance_embeds:
            guidance = torch.full([len(latents)], self.settings.guidance_scale, device=device)
        return network(
            hidden_states=latents.to(self.precision),
            timestep=sigma.to(self.precision),
            guidance=guidance,
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=device, dtype=self.precision),
            img_ids=self.places(device),
            return_dict=False,
        )[0]

    def places(self, device: torch.device) -> torch.Tensor:
        """Coordinates of the tokens, [tokens, 3]."""
        return token_places(*self.latent_size, device, self.precision)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures of unpacked latents."""
        z = unpacked(latents, *self.latent_size)
        return self.draw(z / self.vae.config.scaling_factor + self.vae.config.shift_factor)


class FluxKontextPolicy(FluxPolicy):
    """`FluxKontextPipeline`: the latents of the picture to edit are further tokens, with places of their own."""

    pipeline_class = FluxKontextPipeline
    encoding_parts = (*FluxPolicy.encoding_parts, "vae")

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """The latents of the picture, packed into as many tokens as a state."""
        z = self.encode_pictures(pictures)
        z = (z - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return {"picture": packed(z)[0]}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity of a state's own tokens."""
        both = torch.cat([latents.to(self.precision), conditioning["picture"]], dim=1)
        return super().predict(network, both, sigma, conditioning)[:, : latents.shape[1]]

    def places(self, device: torch.device) -> torch.Tensor:
        """Coordinates of a state's tokens, and then of the picture's, which differ in the first."""
        own = super().places(device)
        return torch.cat([own, own + torch.tensor([1, 0, 0], device=device, dtype=own.dtype)])
