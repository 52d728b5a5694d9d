"""Qwen-Image 2.1: one sequence of a prompt, with the pictures that it comes with, and of the picture that is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImage21Pipeline
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21 as published
from PIL import Image
from transformers import Qwen3VLProcessor

from ...proto.errors import InputError
from ...proto.prompt import pictures_of
from ...proto.tree import Conditioning
from .base import Network
from .pipeline import PipelinePolicy
from .qwen_image_edit import WithoutClips, check_room

SLOT = 2
"""Tokens along the side of what the network counts as one place of a picture."""
READ_SIDE = 1024
"""Side of a square with as many pixels as a picture that a prompt comes with is read in."""
MARK = "<|vision_start|><|image_pad|><|vision_end|>"
"""What stands for a picture in the chat."""


class PictureProcessor(WithoutClips, Qwen3VLProcessor):
    """That of Qwen3-VL."""


class QwenImage21Policy(PipelinePolicy):
    """`QwenImage21Pipeline`. A state is the latents of one picture, [tokens, channels].

    A prompt is padded to `max_sequence_length`. `RowPlaces` has every row computed as if it were not. Pictures of a
    prompt are read at a megapixel in the policy's ratio, by the encoder and as further latents, which stand in the
    prompt where the encoder has its own tokens of them.
    """

    pipeline_class = QwenImage21Pipeline
    spaces_levels = True
    encoding_parts = ("text_encoder", "processor", "vae")
    tokenizer = "processor"

    @classmethod
    def needed_parts(cls, folder: Path) -> dict[str, Any]:
        """The processor without its part for clips, which nothing is given to."""
        return {"processor": PictureProcessor.from_pretrained(folder / "processor", local_files_only=True)}

    def find_network(self) -> torch.nn.Module:
        """The network, with attention by rows."""
        network: Any = super().find_network()
        network.set_attn_processor(RowPlaces(network.config.axes_dims_rope[0] // 2))
        return network

    def as_encoded(self, prompt: str) -> str:
        """Qwen's chat around the pictures and the prompt, with a mark for each token of a picture, and without what the
        model is told of its task: its states are left out."""
        rows, columns = (size // self.grid for size in self.picture_size)
        marks = MARK.replace("<|image_pad|>", "<|image_pad|>" * rows * columns)
        seen = (f"<image{number}>{marks}" for number, _ in enumerate(pictures_of(prompt), start=1))
        chat = str(self.pipeline.prompt_template_t2i.format(" ".join(seen) + (str(prompt) or " ")))
        return chat[chat.index("<|im_start|>user") :]

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of about a megapixel in the policy's ratio, as diffusers rounds them."""
        width, height, _ = published.calculate_dimensions(READ_SIDE**2, self.settings.width / self.settings.height)
        return int(height), int(width)

    @property
    def scale(self) -> int:
        """Pixels along the side of a latent."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def grid(self) -> int:
        """Height and width are multiples of this, pixels."""
        return self.scale * SLOT

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[tokens, channels]: a token is a latent."""
        return self.tokens, self.network.config.in_channels

    def even_levels(self, steps: int) -> Any:
        """Evenly spaced noise levels from 1 to 1 / steps; those of its own of a model that was distilled to a few.

        Raises InputError for another number of steps than that of its own.
        """
        own = self.pipeline.config.sample_sigmas
        if own is None:
            return super().even_levels(steps)
        if len(own) != steps:
            raise InputError(
                f"schedule.steps (or evaluation.steps) is {steps}; this model was distilled to {len(own)} steps, whose "
                f"noise levels are sample_sigmas in model_index.json: it must be {len(own)}"
            )
        return own

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """The state of every token before the encoder's last norm, padded and masked; and which are of pictures.

        Raises InputError as `check_room` does.
        """
        most, pictures = self.settings.max_sequence_length, self.pictures_of(prompt)
        embeds, _, slots = self.pipeline.encode_prompt(str(prompt), image=pictures or None, device=self.device)
        kept = self.padded(embeds[0, :most])
        if not pictures:
            return kept
        check_room(self.settings, int(slots[0].nonzero().max()) + 1)
        return {**kept, "picture_slots": _to_length(slots[0], most)}

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Latents of the pictures, one picture after the other, [tokens, channels]; nothing in them is transparent."""
        z = self.normalised(self.encode_pictures([own.convert("RGBA") for own in pictures], frames=1))
        return {"pictures": z.flatten(2).transpose(1, 2).flatten(0, 1)}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity of a state's tokens, which come after those of the prompt."""
        said, states = conditioning["prompt_embeds_mask"], latents.to(self.precision)
        slots, shapes = torch.zeros_like(said), [(1, *self.latent_size)]
        if (pictures := conditioning.get("pictures")) is not None:
            slots, states = conditioning["picture_slots"], torch.cat([pictures, states], dim=1)
            rows, columns = (size // self.scale for size in self.picture_size)
            shapes = [(1, rows, columns)] * (pictures.shape[1] // (rows * columns)) + shapes
        drawn = said.new_ones(len(said), self.tokens // SLOT**2)
        return network(
            hidden_states=states,
            timestep=sigma.to(self.precision),
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_hidden_states_mask=said,
            img_shapes=[shapes] * len(latents),
            img_mask=torch.cat([slots, drawn], dim=1),
            return_dict=False,
        )[0][:, -self.tokens :]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures; what is transparent in them is white."""
        z = latents.transpose(1, 2).unflatten(2, (1, *self.latent_size))
        colours, opacity = self.draw(self.denormalised(z))[:, 0].split([3, 1], dim=-1)  # a clip of one frame
        return colours * opacity + 1 - opacity


class RowPlaces:
    """Attention in which a row's picture has its place after the row's own prompt, whatever that is padded to.

    diffusers' own has all rows' pictures after the longest prompt. So what it drew from a prompt would depend on the
    prompts beside it. Of the three coordinates of a place only the first is concerned.
    """

    _attention_backend = None  # which diffusers sets

    def __init__(self, angles: int) -> None:
        """`angles` are those of the first coordinate."""
        self._angles = angles

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        *,
        rotary_emb: torch.Tensor,
        segments: Sequence[tuple[int, int, bool]],
        key_valid: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        """States of a joint sequence, [rows, tokens, channels]. Those of texts see what is before them, those of a
        picture in the prompt also all of it, and those of the picture that is drawn see all.

        `rotary_emb` are angles as complex numbers, [tokens, angles]. `segments` are the prompt's texts and pictures,
        each with begin, end, and whether it is a text. `key_valid` masks what is no padding, [rows, tokens].
        """
        prompt = segments[-1][1]
        places = rotary_emb.repeat(len(key_valid), 1, 1)
        places[:, prompt:, : self._angles] = rotary_emb[key_valid[:, :prompt].sum(dim=1), None, : self._angles]
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = _turned(attn.norm_q(query), places).to(value), _turned(attn.norm_k(key), places).to(value)
        kernel = {"backend": self._attention_backend}
        attended = []
        for begin, end, text in segments:  # padding comes after all that looks back
            seen = _seen(begin, end, text, key.device)
            attended.append(dispatch_attention_fn(query[:, begin:end], key[:, :end], value[:, :end], **seen, **kernel))
        drawn = dispatch_attention_fn(query[:, prompt:], key, value, attn_mask=key_valid[:, None, None], **kernel)
        return attn.to_out[1](attn.to_out[0](torch.cat([*attended, drawn], dim=1).flatten(2)))


def _seen(begin: int, end: int, text: bool, device: torch.device) -> dict[str, Any]:
    """How attention is told what the states of a segment see of those before its end."""
    if text and begin:
        return {"attn_mask": torch.ones(end - begin, end, dtype=torch.bool, device=device).tril(begin)}
    return {"is_causal": text}


def _turned(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """States of [rows, tokens, heads, channels], turned by the angles of their places, float32."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * places[:, :, None]).flatten(-2)


def _to_length(mask: torch.Tensor, length: int) -> torch.Tensor:
    """A mask of so many tokens: cut, or with more that aren't in it."""
    return torch.nn.functional.pad(mask, (0, length - len(mask)))
