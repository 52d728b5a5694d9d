"""HunyuanVideo 1.5, text to video and picture to video: a leaf is a clip."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance, HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from PIL import Image

from ...proto.errors import InputError
from ...proto.tree import Conditioning
from .base import Network
from .clips import ClipPolicy
from .decoded import Decoded
from .folder import Part
from .networks import JOINT_ATTENTION
from .weights import without_numbers

FRAME_RATE = 24.0


class HunyuanVideoPolicy(ClipPolicy):
    """`HunyuanVideo15Pipeline`. A state is the latents of one clip, [channels, frames, rows, columns].

    Words in quotation marks are encoded a second time, by their letters.
    """

    pipeline_class = HunyuanVideo15Pipeline
    spaces_levels = True
    lora_modules = JOINT_ATTENTION

    @classmethod
    def stand_in(cls, part: Part) -> Any:
        """A shape for the autoencoder, which diffusers asks for its channels even if it isn't there."""
        return without_numbers(part) if part.name == "vae" else None

    @property
    def scale(self) -> int:
        """Pixels along the side of a latent."""
        return int(self.autoencoder["spatial_compression_ratio"])

    @property
    def frame_scale(self) -> int:
        """Frames of a latent, after the first."""
        return int(self.autoencoder["temporal_compression_ratio"])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, frames, rows, columns] of latents."""
        return self.network.config.out_channels, self.latent_frames, *self.latent_size

    def check_size(self) -> None:
        """Raises InputError for a size that the model can't draw, for guidance that is done otherwise than with a
        negative prompt at every step, and for a network that was distilled to a few steps."""
        guider = self.pipeline.guider
        plain = {"guidance_rescale": 0.0, "use_original_formulation": False, "start": 0.0, "stop": 1.0}
        own = {name: value for name, value in guider.config.items() if plain.get(name, value) != value}
        if type(guider) is not ClassifierFreeGuidance or own:
            raise InputError(
                f"policy.pretrained is '{self.folder}', whose guider is a {type(guider).__name__} with {own}; what is "
                f"supported is ClassifierFreeGuidance with {plain}, whose scale is policy.guidance_scale"
            )
        if self.network.config.use_meanflow:
            raise InputError(
                f"policy.pretrained is '{self.folder}', whose network was distilled to a few steps (use_meanflow): it "
                "must know the next noise level too, which isn't supported; take the model that it was distilled from"
            )
        super().check_size()

    @property
    def guided(self) -> bool:
        """Whether the guidance scale isn't 1, as diffusers' guider decides."""
        return self.settings.guidance_scale != 1

    def as_encoded(self, prompt: str) -> str:
        """What the model is told of its task, and a prompt."""
        (chat,) = format_text_input([str(prompt)], self.pipeline.system_message)
        return str(self.pipeline.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    @property
    def prompt_tokens(self) -> tuple[str, int]:
        """The tokenizer, and the maximum length together with the tokens of the task."""
        return "tokenizer", self.pipeline.prompt_template_encode_start_idx + self.settings.max_sequence_length

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """The embeddings of every token and of the letters of quoted words, and masks of what is no padding."""
        self.pipeline.tokenizer_max_length = self.settings.max_sequence_length
        encoded = self.pipeline.encode_prompt(str(prompt), self.device, self.precision)
        embeds, mask, letters, letters_mask = (tensor[0] for tensor in encoded)
        return {
            "prompt_embeds": embeds,
            "prompt_mask": mask.bool(),
            "letter_embeds": letters,
            "letter_mask": letters_mask.bool(),
        }

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity. The first frame and a mask of where it is come as further channels, zeros without a picture."""
        beside = latents.new_zeros(latents.shape[0], latents.shape[1] + 1, *latents.shape[2:])
        seen = latents.new_zeros(len(latents), 0, self.network.config.image_embed_dim)
        if "first_frame" in conditioning:
            beside[:, :-1, :1], beside[:, -1, 0] = conditioning["first_frame"], 1
            seen = conditioning["seen"]
        return network(
            hidden_states=torch.cat([latents, beside], dim=1).to(self.precision),
            timestep=(sigma * self.pipeline.scheduler.config.num_train_timesteps).to(self.precision),
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_attention_mask=conditioning["prompt_mask"],
            encoder_hidden_states_2=conditioning["letter_embeds"],
            encoder_attention_mask_2=conditioning["letter_mask"],
            image_embeds=seen.to(self.precision),
            return_dict=False,
        )[0]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> Decoded:
        """Clips of 24 frames per second."""
        self.vae.enable_slicing()  # its attention is for one clip at a time
        return Decoded(self.draw(latents / self.vae.config.scaling_factor), frame_rate=FRAME_RATE)


class HunyuanVideoFromPicturePolicy(HunyuanVideoPolicy):
    """`HunyuanVideo15ImageToVideoPipeline`: a clip that begins with a picture, which SigLIP looks at too."""

    pipeline_class = HunyuanVideo15ImageToVideoPipeline
    encoding_parts = (*ClipPolicy.encoding_parts, "image_encoder", "feature_extractor", "vae")

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Latents of the first frame, [channels, 1, rows, columns], and SigLIP's states, [tokens, width]."""
        first = self.encode_pictures(pictures, frames=1)[0] * self.vae.config.scaling_factor
        seen = self.pipeline.encode_image(pictures[0], 1, self.device, self.precision)[0]
        return {"first_frame": first, "seen": seen}
