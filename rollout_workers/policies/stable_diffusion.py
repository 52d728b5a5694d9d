"""Stable Diffusion 1.5, 2 and XL: a UNet that predicts the noise, or v.

Its states are kept in the coordinates of rectified flow, so that every kernel and solver serves it as it serves a flow
model. Where diffusers has x = a * x0 + b * noise with a^2 + b^2 = 1, ours is x / (a + b) = (1 - s) * x0 + s * noise
with s = b / (a + b). DDIM without noise is Euler's step there, and the kernel `ddim` is DDIM with it.
"""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from ...proto.errors import InputError
from ...proto.tree import Conditioning
from .base import Network
from .pipeline import PipelinePolicy


class StableDiffusionPolicy(PipelinePolicy):
    """`StableDiffusionPipeline`. A state is the latents of one picture, [channels, rows, columns]."""

    pipeline_class = StableDiffusionPipeline
    networks = ("unet",)
    takes_sigmas = False
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}  # noqa: RUF012
    _patch = 1

    def scheduler(self, published: Any) -> Any:
        """DDIM over the published noise levels. Raises InputError for a shift, and for a model of other noise levels or
        predictions."""
        if self.settings.shift is not None:
            raise InputError(f"policy.shift is {self.settings.shift}; this model has fixed noise levels: use null")
        if "sigma_data" in published.config:
            raise InputError(
                f"policy.pretrained is '{self.folder}', whose scheduler has sigma_data: its noise levels are EDM's, "
                "which aren't supported"
            )
        scheduler = DDIMScheduler.from_config(published.config, clip_sample=False)
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(
                f"policy.pretrained predicts '{scheduler.config.prediction_type}'; what is known is epsilon and "
                "v_prediction"
            )
        return scheduler

    def check_size(self) -> None:
        """Raises InputError for a size that the model can't draw, and for a network that wants guidance as an input."""
        if (width := self.network.config.time_cond_proj_dim) is not None:
            raise InputError(
                f"policy.pretrained is '{self.folder}', whose network was distilled to a few steps (time_cond_proj_dim "
                f"is {width}): that isn't supported; take the model that it was distilled from"
            )
        super().check_size()

    @property
    def prompt_tokens(self) -> tuple[str, int]:
        """CLIP's tokenizer and its fixed length."""
        return "tokenizer", self.pipeline.tokenizer.model_max_length

    def sigmas(self, steps: int) -> list[float]:
        """Noise levels of DDIM's timesteps, as those of rectified flow. Raises InputError for too many steps."""
        scheduler, levels = self.pipeline.scheduler, self._levels
        # With all of them, an offset of the timesteps, as SD 1.5 has one, would lead beyond the last.
        if steps >= len(levels):
            raise InputError(
                f"schedule.steps is {steps}; of this model's {len(levels)} noise levels it must leave some"
            )
        scheduler.set_timesteps(steps)
        return [float(s) for s in (*levels[scheduler.timesteps], self._last_level)]

    def unlike_evaluations(self, steps: int) -> str:
        """DDIM takes steps of one length, which may lead past or short of the next of its timesteps."""
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(steps)
        own, taken = scheduler.timesteps.tolist(), scheduler.config.num_train_timesteps // steps
        led_to = [timestep - taken for timestep in own]
        if led_to[:-1] == own[1:] and led_to[-1] < 0:
            return ""
        return f"takes steps of {taken} timesteps each; those of evaluations led from each of its timesteps to the next"

    @property
    def _levels(self) -> torch.Tensor:
        """Noise level of each timestep of the training, float64 [timesteps]."""
        return _level(self.pipeline.scheduler.alphas_cumprod.double())

    @property
    def _last_level(self) -> torch.Tensor:
        """Noise level of the leaves, which needn't be quite 0."""
        return _level(self.pipeline.scheduler.final_alpha_cumprod.double())

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """CLIP's embedding of every token."""
        embeds, _ = self.pipeline.encode_prompt(prompt, self.device, 1, False)
        return {"prompt_embeds": embeds[0]}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity of the rectified flow, from the noise or v that the UNet predicts in diffusers' coordinates."""
        s = sigma.reshape(-1, 1, 1, 1)
        a, b, x = (1 - s) / _state_std(s), s / _state_std(s), latents.float() / _state_std(s)
        predicted = network(
            x.to(self.precision),
            self._timesteps(sigma),
            encoder_hidden_states=conditioning["prompt_embeds"],
            added_cond_kwargs=self.added(conditioning),
            return_dict=False,
        )[0].float()
        if self.pipeline.scheduler.config.prediction_type == "epsilon":
            return predicted - (x - b * predicted) / a
        return (a * predicted + b * x) - (a * x - b * predicted)

    def added(self, conditioning: Conditioning) -> dict[str, torch.Tensor] | None:
        """The UNet's further inputs."""
        return None

    def _timesteps(self, sigma: torch.Tensor) -> torch.Tensor:
        """The timestep of each noise level, int64 [rows]."""
        nearest = np.searchsorted(_middles(self._levels.numpy()), sigma.double().cpu().numpy())
        return torch.as_tensor(nearest, device=sigma.device)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures of leaves, which are taken back to diffusers' coordinates."""
        s = self._last_level.to(latents)
        return self.draw(self.unscaled(latents / _state_std(s)))

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The autoencoder's own latents of diffusers' states."""
        return latents / self.vae.config.scaling_factor


class StableDiffusionXLPolicy(StableDiffusionPolicy):
    """`StableDiffusionXLPipeline`: two text encoders, and a UNet that is told the size of the picture."""

    pipeline_class = StableDiffusionXLPipeline
    absent = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}  # noqa: RUF012
    float32_parts = ("vae",)  # its published autoencoder overflows in float16

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """The joined embeddings of both encoders, token by token, and the second one's of the whole prompt."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds[0], "pooled_prompt_embeds": pooled[0]}

    @cached_property
    def _negative(self) -> dict[str, torch.Tensor]:
        """Embedding of the negative prompt; zeros if it is empty and the pipeline says so, as in diffusers."""
        negative = self.embed(self.settings.negative_prompt)
        if self.settings.negative_prompt or not self.pipeline.config.force_zeros_for_empty_prompt:
            return negative
        return {name: torch.zeros_like(value) for name, value in negative.items()}

    def added(self, conditioning: Conditioning) -> dict[str, torch.Tensor]:
        """The embedding of the whole prompt, and the size of a picture that is not cropped."""
        pooled, size = conditioning["pooled_prompt_embeds"], (self.settings.height, self.settings.width)
        sizes = torch.tensor([*size, 0, 0, *size], device=pooled.device, dtype=pooled.dtype)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The autoencoder's own latents of diffusers' states, which are normalised where it has statistics."""
        config, own = self.vae.config, super().unscaled(latents)
        normalised = config.get("latents_mean") is not None and config.get("latents_std") is not None
        return self.denormalised(own[:, :, None])[:, :, 0] if normalised else own


def _state_std(s: torch.Tensor) -> torch.Tensor:
    """`kernels.state_std` of noise levels."""
    return torch.sqrt((1 - s) ** 2 + s**2)


def _level(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    a, b = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    return b / (a + b)


def _middles(values: np.ndarray) -> np.ndarray:
    return (values[1:] + values[:-1]) / 2
