"""Stable Diffusion 3 and 3.5, medium and large."""

import torch
from diffusers import StableDiffusion3Pipeline

from ...proto.errors import InputError
from ...proto.tree import Conditioning
from .base import Network
from .networks import JOINT_ATTENTION
from .pipeline import PipelinePolicy


class StableDiffusion3Policy(PipelinePolicy):
    """`StableDiffusion3Pipeline`. A state is the latents of one picture, [channels, rows, columns]."""

    pipeline_class = StableDiffusion3Pipeline
    lora_modules = JOINT_ATTENTION

    @property
    def prompt_tokens(self) -> tuple[str, int]:
        """T5's tokenizer and the maximum length; without T5, CLIP's."""
        if self.pipeline.tokenizer_3 is None:  # without T5 a prompt is what CLIP takes of it
            return "tokenizer", self.pipeline.tokenizer.model_max_length
        return "tokenizer_3", self.settings.max_sequence_length

    def check_size(self) -> None:
        """Raises InputError also for a size beyond the network's table of positions."""
        super().check_size()
        most = self.network.config.pos_embed_max_size * self.grid
        for name, size in (("height", self.settings.height), ("width", self.settings.width)):
            if size > most:
                raise InputError(f"policy.{name} is {size}; this model draws at most {most}")

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """The joined embeddings of both CLIP encoders and T5, token by token, and CLIP's of the whole prompt."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_sequence_length,
        )
        return {"prompt_embeds": embeds[0], "pooled_prompt_embeds": pooled[0]}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity, with noise levels counted in training steps."""
        return network(
            hidden_states=latents.to(self.precision),
            timestep=sigma * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
