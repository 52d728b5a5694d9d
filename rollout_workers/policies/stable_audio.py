"""Stable Audio Open: a leaf is a waveform.

diffusers has its states as x = x0 + r * noise, with ratios r from 500 to 0.3. Ours are in the coordinates of rectified
flow, x / (1 + r) = (1 - s) * x0 + s * noise with s = r / (1 + r), so that every kernel and solver serves them.
"""

import math
from functools import cached_property
from typing import Any

import torch
from diffusers import StableAudioDiTModel, StableAudioPipeline
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from ...proto.errors import InputError
from ...proto.tree import Conditioning
from .base import Network
from .decoded import Decoded
from .pipeline import PipelinePolicy


class Adaptable(PeftAdapterMixin, StableAudioDiTModel):
    """diffusers' network, whose class lacks what its other networks have for LoRA."""


Adaptable.__name__ = StableAudioDiTModel.__name__  # which is written into its config


class StableAudioPolicy(PipelinePolicy):
    """`StableAudioPipeline`. A state is the latents of one waveform, [channels, length]; it always has the model's full
    length, of which a leaf is the first `policy.seconds`.

    The published scheduler adds noise at every step; of it the noise levels are taken.
    """

    pipeline_class = StableAudioPipeline
    takes_sigmas = False
    result = "audios"
    encoding_parts = ("text_encoder", "tokenizer", "projection_model")

    def find_network(self) -> torch.nn.Module:
        """The loaded network, as one that can have adapters."""
        network: torch.nn.Module = self.pipeline.transformer
        network.__class__ = Adaptable
        return network

    def scheduler(self, published: Any) -> Any:
        """The published one. Raises InputError for a shift, and for a model that predicts something else than v."""
        if self.settings.shift is not None:
            raise InputError(f"policy.shift is {self.settings.shift}; this model has fixed noise levels: use null")
        config = published.config
        if (config.prediction_type, config.sigma_data) != ("v_prediction", 1.0):
            raise InputError(
                f"policy.pretrained predicts '{config.prediction_type}' of data with deviation {config.sigma_data}; "
                "what is known is v_prediction with 1.0"
            )
        return published

    def unlike_evaluations(self, steps: int) -> str:
        """The published scheduler is a stochastic one."""
        return "adds noise at every step; evaluations took Euler's steps"

    def check_size(self) -> None:
        """Raises InputError for more seconds than the model makes, and for frames."""
        if self.settings.frames != 1:
            raise InputError(f"policy.frames is {self.settings.frames}; this model makes sounds: leave it out")
        longest = self._samples / self._rate
        if self._seconds > longest:
            raise InputError(f"policy.seconds is {self._seconds:g}; this model makes at most {longest:.4g}")

    @property
    def _rate(self) -> int:
        """Samples per second."""
        return int(self.autoencoder["sampling_rate"])

    @property
    def _samples(self) -> int:
        """Samples of the waveform of a whole state."""
        return int(self.network.config.sample_size * math.prod(self.autoencoder["downsampling_ratios"]))

    @property
    def _seconds(self) -> float:
        return self._samples / self._rate if self.settings.seconds is None else self.settings.seconds

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, length]."""
        return self.network.config.in_channels, self.network.config.sample_size

    @property
    def tokens(self) -> int:
        """Latents of a waveform, each of which is a token."""
        return int(self.network.config.sample_size)

    def sigmas(self, steps: int) -> list[float]:
        """The scheduler's noise levels, as those of rectified flow."""
        self.pipeline.scheduler.set_timesteps(steps)
        return [float(ratio / (1 + ratio)) for ratio in self.pipeline.scheduler.sigmas.double()]

    @property
    def encoding_extras(self) -> tuple[object, ...]:
        """The seconds, which are part of what is encoded."""
        return (self._seconds,)

    @property
    def prompt_tokens(self) -> tuple[str, int]:
        """T5's tokenizer and its fixed length."""
        return "tokenizer", self.pipeline.tokenizer.model_max_length

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """T5's embedding of every token and those of the first and the last second, and the latter two as one."""
        embeds = self.pipeline.encode_prompt(str(prompt), self.device, False)
        start, end = self.pipeline.encode_duration(0.0, self._seconds, self.device, False, 1)
        return {
            "prompt_embeds": torch.cat([embeds, start, end], dim=1)[0],
            "duration_embeds": torch.cat([start, end], dim=2)[0],
        }

    @cached_property
    def _negative(self) -> dict[str, torch.Tensor]:
        """Embedding of the negative prompt; zeros if it is empty, as in diffusers."""
        negative = self.embed(self.settings.negative_prompt)
        if not self.settings.negative_prompt:
            negative["prompt_embeds"] = torch.zeros_like(negative["prompt_embeds"])
        return negative

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity of the rectified flow, from the v that the network predicts of states with deviation 1."""
        s = sigma.reshape(-1, 1, 1)
        std = torch.hypot(1 - s, s)
        a, b, x = (1 - s) / std, s / std, latents.float() / std
        predicted = network(
            x.to(self.precision),
            torch.atan2(sigma, 1 - sigma) * 2 / math.pi,
            encoder_hidden_states=conditioning["prompt_embeds"],
            global_hidden_states=conditioning["duration_embeds"],
            rotary_embedding=self._positions,
            return_dict=False,
        )[0].float()
        return (a * predicted + b * x) - (a * x - b * predicted)

    @cached_property
    def _positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of every latent's place, with one more for the token that is put before them."""
        half, length = self.network.config.attention_head_dim // 2, self.network.config.sample_size + 1
        cos, sin = get_1d_rotary_pos_embed(half, length, use_real=True, repeat_interleave_real=False)
        return cos.to(self.device), sin.to(self.device)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> Decoded:
        """Waveforms of `policy.seconds`."""
        sound = self.vae.decode(latents.to(self.vae.dtype)).sample[..., : int(self._seconds * self._rate)]
        return Decoded(sound=sound.float(), sample_rate=self._rate)
