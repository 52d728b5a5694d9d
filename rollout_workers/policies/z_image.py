"""Z-Image and Z-Image-Turbo: one stream of picture and prompt, and a guidance scale that counts from 0."""

from typing import Any

import torch
from diffusers import ZImagePipeline

from ...proto.tree import Conditioning
from .base import Network
from .pipeline import PipelinePolicy
from .prompt_encoding import as_message


class ZImagePolicy(PipelinePolicy):
    """`ZImagePipeline`. A state is the latents of one picture, [channels, rows, columns].

    Its network takes prompts of different lengths, and hides what it adds to the shorter ones of a batch.
    """

    pipeline_class = ZImagePipeline
    spaces_levels = True
    neutral_scale = 0.0  # this pipeline of diffusers has the usual scale less 1
    _patch = 2  # its configuration lists all that it could have

    def as_encoded(self, prompt: str) -> str:
        """Qwen's chat around a prompt."""
        return as_message(prompt, self.pipeline.tokenizer, thinking=True)

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """The embedding of every token, padded to `max_sequence_length`, and a mask of what is no padding."""
        most = self.settings.max_sequence_length
        (embeds,), _ = self.pipeline.encode_prompt(
            prompt, self.device, do_classifier_free_guidance=False, max_sequence_length=most
        )
        return {
            "prompt_embeds": torch.nn.functional.pad(embeds, (0, 0, 0, most - len(embeds))),
            "prompt_embeds_mask": torch.arange(most, device=self.device) < len(embeds),
        }

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity: the network predicts its negative, from the share of the picture in a state."""
        lengths = conditioning["prompt_embeds_mask"].sum(1).tolist()
        embeds = [row[:length] for row, length in zip(conditioning["prompt_embeds"], lengths, strict=True)]
        states = list(latents.to(self.precision).unsqueeze(2))
        pictures: Any = network(states, 1 - sigma, embeds, return_dict=False)[0]
        return -torch.stack(pictures).squeeze(2)

    def guide(self, without: torch.Tensor, towards: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Guidance that adds to the prompt's own velocity."""
        return towards + self.guidance(sigma) * (towards - without)
