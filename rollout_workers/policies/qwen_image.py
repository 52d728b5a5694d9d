"""Qwen-Image: prompts of different lengths, and guidance that keeps the norm."""

import torch
from diffusers import QwenImagePipeline

from ...proto.tree import Conditioning
from .base import Network
from .networks import JOINT_ATTENTION
from .packing import unpacked
from .pipeline import PipelinePolicy


class QwenImagePolicy(PipelinePolicy):
    """`QwenImagePipeline`. A state is the packed latents of one picture, [tokens, channels].

    Its prompts differ in length. Here they are padded to `max_sequence_length` and masked, so that the result of a row
    doesn't depend on the rows beside it.
    """

    pipeline_class = QwenImagePipeline
    spaces_levels = True
    lora_modules = JOINT_ATTENTION

    def as_encoded(self, prompt: str) -> str:
        """Qwen's instruction around a prompt."""
        return str(self.pipeline.prompt_template_encode.format(prompt))

    @property
    def prompt_tokens(self) -> tuple[str, int]:
        """The tokenizer, and the maximum length together with the instruction's tokens."""
        return "tokenizer", self.pipeline.prompt_template_encode_start_idx + self.settings.max_sequence_length

    @property
    def scale(self) -> int:
        """Pixels along the side of a latent, by the number of the autoencoder's halvings."""
        return int(2 ** len(self.autoencoder["temperal_downsample"]))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[tokens, channels]: a token is a patch of latents."""
        rows, columns = self.latent_size
        return rows * columns // self._patch**2, self.network.config.in_channels

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """The embedding of every token, padded and masked."""
        most = self.settings.max_sequence_length
        embeds, _ = self.pipeline.encode_prompt(prompt, device=self.device, max_sequence_length=most)
        return self.padded(embeds[0])

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity; the mask hides the padding of a prompt."""
        return network(
            hidden_states=latents.to(self.precision),
            timestep=sigma.to(self.precision),
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_hidden_states_mask=conditioning["prompt_embeds_mask"],
            img_shapes=[self.grids(conditioning)] * len(latents),
            return_dict=False,
        )[0]

    def grids(self, conditioning: Conditioning) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of a state's tokens."""
        height, width = (size // self._patch for size in self.latent_size)
        return [(1, height, width)]

    def guide(self, without: torch.Tensor, towards: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Every token's velocity keeps the length that it has without guidance."""
        guided = super().guide(without, towards, sigma)
        return guided * (towards.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures: the autoencoder makes clips of one frame."""
        z = unpacked(latents, *self.latent_size)[:, :, None]
        return self.draw(self.denormalised(z))[:, 0]  # a clip of one frame
