"""Chroma: Flux's states with classifier-free guidance, and T5's tokens under a mask."""

from functools import partial

import torch
from diffusers import ChromaPipeline
from torch.utils.checkpoint import checkpoint

from ...proto.tree import Conditioning
from .base import Network
from .flux import FluxPolicy


class ChromaPolicy(FluxPolicy):
    """`ChromaPipeline`. A state is the packed latents of one picture, [tokens, channels]."""

    pipeline_class = ChromaPipeline
    classifier_free = True
    tokenizer = "tokenizer"

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """T5's embedding of every token, and a mask that leaves of the padding the first token alone."""
        embeds, _, mask, *_ = self.pipeline.encode_prompt(
            prompt,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_sequence_length,
        )
        return {"prompt_embeds": embeds[0], "prompt_mask": mask[0]}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity; the mask covers the prompt's tokens and, with ones, those of a state."""
        embeds, mask, device = conditioning["prompt_embeds"], conditioning["prompt_mask"], latents.device
        return network(
            hidden_states=latents.to(self.precision),
            timestep=sigma.to(self.precision),
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=device, dtype=self.precision),
            img_ids=self.places(device),
            attention_mask=torch.cat([mask, mask.new_ones(latents.shape[:2])], dim=1),
            return_dict=False,
        )[0]

    def checkpoint_gradients(self) -> None:
        """Have the network recompute activations in the backward pass, block by block: diffusers' own way leaves the
        mask out of half of the blocks."""
        for block in (*self.network.transformer_blocks, *self.network.single_transformer_blocks):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
