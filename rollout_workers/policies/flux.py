"""The Flux family: FLUX.1-dev, FLUX.1-schnell and the embedded `glyphs`."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict

from ...proto.errors import InputError
from ...proto.settings import LoraSettings, PolicySettings
from ...proto.tree import Conditioning
from .base import Network


class FluxPolicy:
    """`FluxPipeline` as a policy. A state is the packed latents of one picture, [tokens, channels]."""

    def __init__(
        self, folder: Path, settings: PolicySettings, device: torch.device, *, network_only: bool = False
    ) -> None:
        """Loads the pipeline from `folder` onto `device`, with `network_only` without VAE and text encoders.

        Raises InputError for a pipeline that can't be loaded or a size it can't draw.
        """
        self.precision = getattr(torch, settings.precision)
        absent = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        try:
            self.pipeline = FluxPipeline.from_pretrained(
                folder,
                dtype=self.precision,
                local_files_only=True,
                use_safetensors=True,  # of weights that are pickled nothing is loaded
                **(absent if network_only else {}),
            ).to(device)
            vae = AutoencoderKL.load_config(folder, subfolder="vae", local_files_only=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"policy.pretrained is '{folder}', which can't be loaded: {reason}") from error
        self.network = self.pipeline.transformer
        self.device = device
        self._settings = settings
        self._grid = 2 ** len(vae["block_out_channels"])  # pixels per patch of 2 x 2 latents
        for name, size in (("height", settings.height), ("width", settings.width)):
            if size % self._grid:
                raise InputError(f"policy.{name} is {size}; this model draws multiples of {self._grid}")
        for part in (self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2):
            if part is not None:
                part.requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        rows, columns = self._settings.height // self._grid, self._settings.width // self._grid
        return rows * columns, self.network.config.in_channels

    def sigmas(self, steps: int) -> list[float]:
        scheduler = self.pipeline.scheduler
        config = scheduler.config
        shift = calculate_shift(
            self.latent_shape[0],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        even = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        retrieve_timesteps(scheduler, steps, "cpu", sigmas=even, mu=shift)
        return [float(sigma) for sigma in scheduler.sigmas]

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, max_sequence_length=self._settings.max_sequence_length
        )
        return {"prompt_embeds": embeds[0], "pooled_prompt_embeds": pooled[0]}

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        embeds = conditioning["prompt_embeds"]
        guidance = None
        if self.network.config.guidance_embeds:
            guidance = torch.full([len(latents)], self._settings.guidance_scale, device=latents.device)
        height, width = (size // self._grid for size in (self._settings.height, self._settings.width))
        return (network or self.network)(
            hidden_states=latents.to(self.precision),
            timestep=sigma.to(self.precision),
            guidance=guidance,
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=latents.device, dtype=self.precision),
            img_ids=FluxPipeline._prepare_latent_image_ids(1, height, width, latents.device, self.precision),
            return_dict=False,
        )[0]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae, scale = self.pipeline.vae, self.pipeline.vae_scale_factor
        z = FluxPipeline._unpack_latents(latents, self._settings.height, self._settings.width, scale)
        z = z / vae.config.scaling_factor + vae.config.shift_factor
        pictures = vae.decode(z.to(vae.dtype)).sample
        return self.pipeline.image_processor.denormalize(pictures).float().permute(0, 2, 3, 1)

    def checkpoint_gradients(self) -> None:
        self.network.enable_gradient_checkpointing()

    def add_lora(self, settings: LoraSettings) -> None:
        self.network.requires_grad_(False)
        adapters = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=list(settings.target_modules),
            init_lora_weights="gaussian",
        )
        try:
            self.network.add_adapter(adapters)
        except ValueError as error:
            raise InputError(f"learner.lora.target_modules is {settings.target_modules}: {error}") from error

    def save(self, folder: Path) -> Path:
        if getattr(self.network, "peft_config", None):
            FluxPipeline.save_lora_weights(
                folder,
                transformer_lora_layers=get_peft_model_state_dict(self.network),
                **_collate_lora_metadata({"transformer": self.network}),
            )
            return folder / "pytorch_lora_weights.safetensors"
        self.network.save_pretrained(folder / "transformer", safe_serialization=True)
        return folder / "transformer"
