"""Qwen-Image-Edit and Edit Plus: the encoder sees the pictures to edit, and so does the network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as published
from PIL import Image
from transformers import ProcessorMixin, Qwen2VLProcessor

from ...proto.errors import InputError
from ...proto.prompt import pictures_of
from ...proto.settings import PolicySettings
from ...proto.tree import Conditioning
from .base import Network
from .packing import packed
from .qwen_image import QwenImagePolicy


class WithoutClips(ProcessorMixin):
    """A processor of Qwen for texts and pictures alone: its part for clips needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class PictureProcessor(WithoutClips, Qwen2VLProcessor):
    """That of Qwen2-VL."""


class QwenImageEditPlusPolicy(QwenImagePolicy):
    """`QwenImageEditPlusPipeline`, for one to three pictures.

    It reads them in two sizes of its own, in the ratio of the policy's: a small one with the prompt, and one of a
    megapixel, whose latents are further tokens.
    """

    pipeline_class = QwenImageEditPlusPipeline
    encoding_parts = (*QwenImagePolicy.encoding_parts, "processor", "vae")

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the larger size."""
        return self._size(published.VAE_IMAGE_SIZE)

    @property
    def seen_size(self) -> tuple[int, int]:
        """Height and width of the smaller size."""
        return self._size(published.CONDITION_IMAGE_SIZE)

    @classmethod
    def replacements(cls, folder: Path) -> dict[str, Any]:
        """The processor without its part for clips, which nothing is given to."""
        return {"processor": PictureProcessor.from_pretrained(folder / "processor", local_files_only=True)}

    def as_encoded(self, prompt: str) -> str:
        """The instruction around the pictures and the prompt, with a mark for each token of a picture."""
        seen = (
            f"Picture {number}: <|vision_start|>{'<|image_pad|>' * self._picture_tokens}<|vision_end|>"
            for number, _ in enumerate(pictures_of(prompt), start=1)
        )
        return super().as_encoded("".join(seen) + prompt)

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """The embedding of every token of the pictures and the prompt, padded and masked.

        Raises InputError as `check_room` does.
        """
        before, end, _ = self.as_encoded(prompt).rpartition("<|vision_end|>")
        read = len(self.pipeline.tokenizer(before + end, verbose=False).input_ids)
        check_room(self.settings, read - self.pipeline.prompt_template_encode_start_idx)
        seen = [self.pipeline.image_processor.resize(own, *self.seen_size) for own in self.pictures_of(prompt)]
        embeds, _ = self.pipeline.encode_prompt(str(prompt), image=seen or None, device=self.device)
        return self.padded(embeds[0, : self.settings.max_sequence_length])

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Latents of the pictures, packed into tokens, one picture after the other."""
        z = self.normalised(self.encode_pictures(pictures, frames=1))[:, :, 0]
        return {"pictures": packed(z).flatten(0, 1)}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity of a state's own tokens."""
        both = torch.cat([latents.to(self.precision), conditioning["pictures"]], dim=1)
        return super().predict(network, both, sigma, conditioning)[:, : latents.shape[1]]

    def grids(self, conditioning: Conditioning) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of a state's tokens, and of each picture's."""
        rows, columns = (size // self.grid for size in self.picture_size)
        count = conditioning["pictures"].shape[1] // (rows * columns)
        return [*super().grids(conditioning), *[(1, rows, columns)] * count]

    def _size(self, area: int) -> tuple[int, int]:
        """Height and width of about so many pixels in the policy's ratio, as diffusers rounds them."""
        width, height = published.calculate_dimensions(area, self.settings.width / self.settings.height)
        return int(height), int(width)

    @property
    def _picture_tokens(self) -> int:
        """Tokens of a picture that the encoder sees."""
        processor = self.pipeline.processor.image_processor
        return int(processor.get_number_of_image_patches(*self.seen_size) // processor.merge_size**2)


def check_room(settings: PolicySettings, tokens: int) -> None:
    """Raises InputError if a prompt's pictures, which are its first `tokens`, leave no room for its text."""
    if tokens >= settings.max_sequence_length:
        raise InputError(
            f"policy.max_sequence_length is {settings.max_sequence_length}; this prompt's pictures alone take {tokens} "
            f"tokens in the policy's ratio ({settings.height} x {settings.width}), and its text comes after them"
        )


class QwenImageEditPolicy(QwenImageEditPlusPolicy):
    """`QwenImageEditPipeline`, for one picture, which the encoder too sees at a megapixel."""

    pipeline_class = QwenImageEditPipeline

    @property
    def seen_size(self) -> tuple[int, int]:
        """Height and width of a megapixel."""
        return self.picture_size

    def as_encoded(self, prompt: str) -> str:
        """The instruction around the picture and the prompt, with a mark for each token of the picture."""
        mark = "<|image_pad|>"
        return QwenImagePolicy.as_encoded(self, prompt).replace(mark, mark * self._picture_tokens, 1)
