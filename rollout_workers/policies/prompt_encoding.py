"""How the prompts of a diffusers pipeline are encoded, and which of them are cut."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
import transformers
from PIL import Image

from ...proto.prompt import Prompt, pictures_of
from ...proto.settings import PolicySettings
from ...proto.tree import Conditioning
from .embeddings import fingerprint

NEGATIVE = "negative_"
"""Before the names of the negative prompt's entries in a conditioning."""
ENCODERS = ("text_encoder", "image_encoder", "projection_model", "connectors")
"""How the names begin of the pipeline's parts that are models and encode prompts."""


class PromptEncoding:
    """The text encoders of a pipeline. A family defines `embed`, and where it differs what stands here."""

    encoding_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    """How the names begin of the pipeline's parts that encode; with "vae", pictures in the policy's size."""
    tokenizer: ClassVar[str] = "tokenizer"
    """The pipeline's tokenizer by whose tokens prompts are cut."""
    scales_pictures: ClassVar[bool] = False
    """Whether pictures have their full size until the pipeline scales them to `picture_size`, in its ratio."""
    pipeline: Any
    folder: Path
    settings: PolicySettings
    device: torch.device
    precision: Any

    @classmethod
    def replacements(cls, folder: Path) -> dict[str, Any]:
        """Parts of the pipeline that are loaded otherwise than diffusers does it."""
        return {}

    @classmethod
    def needed_parts(cls, folder: Path) -> dict[str, Any]:
        """Those of them without which diffusers can't make the pipeline."""
        return {}

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is encoded too."""
        raise NotImplementedError

    @property
    def encoders(self) -> dict[str, torch.nn.Module]:
        """The encoders that were loaded, by the pipeline's names."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if name.startswith(ENCODERS) and part is not None}

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        """The conditioning on a prompt with its pictures and, with guidance, on the negative prompt.

        Moves the encoders to the device.
        """
        for tensor, kept in self._encoder_weights:
            if tensor.device.type != self.device.type:
                tensor.data = kept.to(self.device)
        pictures = self.pictures_of(prompt)
        conditioning = self.embed(prompt) | (self.embed_pictures(pictures) if pictures else {})
        if not self.guided:
            return conditioning
        without = Prompt(self.settings.negative_prompt, pictures=pictures_of(prompt))
        negative = self.embed(without) if pictures else self._negative
        return {**conditioning, **{NEGATIVE + name: value for name, value in negative.items()}}

    def pictures_of(self, prompt: str) -> list[Image.Image]:
        """The pictures of a prompt, in `picture_size`."""
        return [picture.fitted(*self.picture_size) for picture in pictures_of(prompt)]

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in which pictures are read."""
        return self.settings.height, self.settings.width

    def encode_pictures(self, pictures: Sequence[Image.Image], *, frames: int | None = None) -> torch.Tensor:
        """The autoencoder's own latents of pictures, the likeliest ones, [n, channels, rows, columns]; with `frames`,
        of clips that begin with them and are grey from then on, [n, channels, frames of latents, rows, columns]."""
        # Where there is a `video_processor`, the `image_processor` is CLIP's.
        processor = getattr(self.pipeline, "video_processor", None) or self.pipeline.image_processor
        pixels = torch.cat([processor.preprocess(picture) for picture in pictures])
        if frames is not None:
            pixels = torch.nn.functional.pad(pixels.unsqueeze(2), (0, 0, 0, 0, 0, frames - 1))
        vae: Any = self.pipeline.vae
        latents: torch.Tensor = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return latents

    def release_encoders(self) -> None:
        """Free the device of the text encoders."""
        for tensor, kept in self._encoder_weights:  # which are still there: nothing is copied back
            tensor.data = kept

    @cached_property
    def _encoder_weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Parameters and buffers of the text encoders, and what they hold in the host's memory."""
        tensors = (t for encoder in self.encoders.values() for t in (*encoder.parameters(), *encoder.buffers()))
        return [(tensor, tensor.data) for tensor in tensors]

    @cached_property
    def encoding(self) -> str:
        """Names what `encode` depends on beside the prompt: encoders, libraries, length, precision, negative prompt."""
        settings, own = self.settings, self.encoding_parts
        parts = sorted(path for path in self.folder.iterdir() if path.name.startswith(own))
        return fingerprint(
            parts,
            type(self).__name__,
            diffusers.__version__,
            transformers.__version__,
            settings.max_sequence_length,
            settings.precision,
            settings.negative_prompt if self.guided else None,
            *((settings.variant,) if settings.variant else ()),
            *self.encoding_extras,
        )

    @property
    def encoding_extras(self) -> tuple[object, ...]:
        """What `encode` depends on besides: where pictures are encoded in it, the size, and that of a clip."""
        settings = self.settings
        if "vae" not in self.encoding_parts:
            return ()
        return settings.height, settings.width, *((settings.frames,) if settings.frames > 1 else ())

    @cached_property
    def _negative(self) -> dict[str, torch.Tensor]:
        return self.embed(self.settings.negative_prompt)

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than what is encoded of them."""
        name, limit = self.prompt_tokens
        if (tokenizer := getattr(self.pipeline, name, None)) is None:
            return []
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        # There are never more tokens than bytes, and two around them: most prompts needn't be looked at.
        texts = {prompt: self.as_encoded(prompt) for prompt in prompts}
        long = [prompt for prompt, text in texts.items() if len(text.encode()) + 2 > limit]
        return [prompt for prompt in long if len(tokenizer(texts[prompt], verbose=False).input_ids) > limit]

    def as_encoded(self, prompt: str) -> str:
        """The text whose tokens are encoded for a prompt."""
        return prompt

    @property
    def prompt_tokens(self) -> tuple[str, int]:
        """The tokenizer by which a prompt is cut, by the pipeline's name, and the number of tokens that are left."""
        return self.tokenizer, self.settings.max_sequence_length

    def padded(self, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Embeddings of tokens, padded to `max_sequence_length`, and a mask of what is no padding."""
        tokens, most = len(embeds), self.settings.max_sequence_length
        return {
            "prompt_embeds": torch.nn.functional.pad(embeds.to(self.precision), (0, 0, 0, most - tokens)),
            "prompt_embeds_mask": torch.arange(most, device=self.device) < tokens,
        }

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """The network's input from one prompt, each tensor without a batch dimension. Encoders are on the device."""
        raise NotImplementedError

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """The network's input from the pictures of a prompt, in `picture_size`, likewise. It goes with the negative
        prompt too."""
        raise NotImplementedError


def as_message(prompt: str, tokenizer: Any, *, thinking: bool) -> str:
    """What a chat's tokenizer makes of a prompt as a message."""
    message = [{"role": "user", "content": str(prompt)}]
    return str(
        tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    )
