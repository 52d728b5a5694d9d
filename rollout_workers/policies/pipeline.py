"""The common part of policies over diffusers pipelines. Each family adds a file beside it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from ...proto.errors import InputError
from ...proto.settings import LoraSettings, PolicySettings
from ...proto.tree import Conditioning
from .attention import choose_attention
from .base import Builder, Network
from .compiling import compile_network
from .decoded import Decoded
from .folder import INDEX, Part, find_parts, opened, read_json, weight_files
from .guidance import check_factors, check_second
from .lora import add_adapters, merged, save_adapters
from .prompt_encoding import NEGATIVE, PromptEncoding
from .start import Start, Starts, lora_files
from .weights import find_problems, one_line

JOINT_ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""Layers of blocks in which a state and a prompt have layers of their own."""


class PipelinePolicy(PromptEncoding):
    """A diffusers pipeline as a policy. A family says how its network is called, and what surrounds it.

    It defines `embed` and `predict`, and where it differs what stands here.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    result: ClassVar[str] = "images"  # what the pipeline's output calls its leaves; or `frames`, `audios`
    networks: ClassVar[tuple[str, ...]] = ("transformer",)
    """The pipeline's parts that are trained."""
    lora_modules: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers that get an adapter if the recipe names none."""
    checkpoint_prefixes: ClassVar[dict[str, str]] = {}
    """Prefixes of the names of each network's weights in a checkpoint, if there is more than one network."""
    absent: ClassVar[dict[str, Any]] = {}
    """Replacements for unused parts when the pipeline is loaded."""
    float32_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that stay in float32 at any precision."""
    decoder_parts: ClassVar[tuple[str, ...]] = ("vae",)
    """The pipeline's parts that decode."""
    takes_sigmas = True
    """Whether the pipeline takes noise levels of one's own."""
    spaces_levels = False
    """Whether the pipeline spaces noise levels, evenly, and the scheduler only shifts them."""
    scales_sound = False
    """Whether `guidance_scale_2` is that of a sound."""
    classifier_free = True
    """Whether a guidance scale other than 1 means a second row, for the negative prompt."""
    neutral_scale = 1.0
    """Guidance scale at which the prompt's own velocity is taken."""

    def __init__(
        self,
        folder: Path,
        settings: PolicySettings,
        device: torch.device,
        *,
        network_only: bool = False,
        build: Builder | None = None,
    ) -> None:
        """Loads the pipeline from `folder`, with `network_only` without autoencoder and text encoders. With `build`,
        that makes the networks.

        Raises InputError for a pipeline that can't be loaded, or settings that it can't be used with.
        """
        self.folder, self.settings, self.device = folder, settings, device
        self.precision = getattr(torch, settings.precision)
        if settings.negative_prompt and not self.classifier_free:
            raise InputError(
                f"policy.negative_prompt is '{settings.negative_prompt}', and this model has no classifier-free "
                "guidance; leave it out"
            )
        if settings.sigmas and not self.takes_sigmas:
            raise InputError(f"policy.sigmas is {settings.sigmas}; {self.pipeline_class.__name__} takes none: use null")
        parts = self.find_parts(folder, settings.variant)
        around = [part for name, part in parts.items() if part.has_weights and name not in self.networks]
        stand_ins = {part.name: self.stand_in(part) for part in around if network_only}
        absent = dict.fromkeys(find_parts(folder).keys() - parts.keys()) | self.absent | stand_ins
        self.check_parts([part for name, part in parts.items() if name not in absent])
        networks = {name: parts[name] for name in self.networks if name in parts}
        self.start = Start()
        if settings.start_from:
            prefixes = self.checkpoint_prefixes if len(networks) > 1 else {}
            starts = Starts(self.pipeline_class, folder, networks, prefixes, self.needed_parts)
            self.start = starts.read(settings.start_from)
        try:
            replacements = self.replacements(folder)
            if build:
                absent |= {name: self._built(part, build) for name, part in networks.items()}
            self.pipeline = self.pipeline_class.from_pretrained(
                folder,
                dtype={"default": self.precision, **dict.fromkeys(self.float32_parts, torch.float32)},
                local_files_only=True,
                variant=settings.variant,
                use_safetensors=True,  # of weights that are pickled nothing is loaded
                **dict.fromkeys(replacements),
                **self.needed_parts(folder),
                **absent,
            )
            self.pipeline.register_modules(**dict.fromkeys(stand_ins), **replacements)
        except Exception as error:  # of a library, over files of whatever kind
            raise InputError(f"policy.pretrained is '{folder}', which can't be loaded: {one_line(error)}") from error
        self.autoencoder = read_json(folder / "vae" / "config.json")
        self.pipeline.scheduler = self.scheduler(self.pipeline.scheduler)
        self.network: Any = self.find_network()
        check_second(settings, guided=self.guided, known=len(self._networks) > 1 or self.scales_sound)
        if self.guided:
            check_factors(settings, self.neutral_scale)
        self.check_size()
        if not build:
            self.network.to(device)
            # diffusers would keep a few layers of some families in float32. The engine that trains them would not.
            for parameter in self.network.parameters():
                parameter.data = parameter.data.to(self.precision)
            self._take_up(networks)
        for network in self._networks.values():
            choose_attention(network, settings.attention)
        if settings.compile:
            compile_network(self.network)
        for encoder in self.encoders.values():
            encoder.requires_grad_(False)
        for decoder in self.decoders:
            decoder.requires_grad_(False).to(device)

    def check_parts(self, parts: Sequence[Part]) -> None:
        """Raises InputError for parts that can't be loaded, before any is."""
        if problems := find_problems(parts):
            raise InputError("\n".join(problems))

    @classmethod
    def find_parts(cls, folder: Path, variant: str | None) -> dict[str, Part]:
        """The parts of the pipeline in `folder` that a policy uses, by name, with weights of the variant.

        Raises InputError as `find_parts` does, or if the index names no network, autoencoder or scheduler.
        """
        parts = {name: part for name, part in find_parts(folder, variant).items() if part and name not in cls.absent}
        for name in (cls.networks[0], "vae", "scheduler"):
            if name not in parts:
                raise InputError(f"policy.pretrained is '{folder}', whose {INDEX} names no {name}")
        return parts

    @classmethod
    def stand_in(cls, part: Part) -> Any:
        """What the pipeline is made with in place of a part that isn't loaded."""
        return None

    def find_network(self) -> torch.nn.Module:
        """The loaded network."""
        return getattr(self.pipeline, self.networks[0])

    def scheduler(self, published: Any) -> Any:
        """The scheduler to take noise levels from, in place of the `published` one."""
        if self.settings.sigmas:
            return FlowMatchEulerDiscreteScheduler(published.config.num_train_timesteps)
        if self.settings.shift is None:
            return published
        return FlowMatchEulerDiscreteScheduler.from_config(
            published.config, use_dynamic_shifting=False, shift=self.settings.shift
        )

    @property
    def vae(self) -> Any:
        """The autoencoder, None if it wasn't loaded."""
        return self.pipeline.vae

    @property
    def decoders(self) -> list[Any]:
        """The autoencoder, and what else decodes, as far as it was loaded."""
        return [part for name in self.decoder_parts if (part := getattr(self.pipeline, name)) is not None]

    @property
    def grid(self) -> int:
        """Height and width are multiples of this, pixels."""
        return self.scale * self._patch

    @property
    def scale(self) -> int:
        """Pixels along the side of a latent."""
        return int(2 ** (len(self.autoencoder["block_out_channels"]) - 1))

    @property
    def _patch(self) -> int:
        """Latents along the side of a token."""
        return int(self.network.config.patch_size)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of latents."""
        return self.settings.height // self.scale, self.settings.width // self.scale

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, rows, columns] of latents."""
        return self.network.config.in_channels, *self.latent_size

    @property
    def guided(self) -> bool:
        """Whether every state goes through the network twice: with the prompt, and with the negative one."""
        return self.classifier_free and self.settings.guidance_scale > self.neutral_scale

    def guidance(self, sigma: torch.Tensor) -> float | torch.Tensor:
        """Factor of classifier-free guidance at noise levels, one or [rows, 1 ...]."""
        return self.settings.guidance_scale

    def with_guidance(self, scale: float) -> Self:
        """The same policy, models and weights shared, with another guidance scale."""
        policy = copy(self)
        vars(policy).pop("encoding", None)  # it depends on whether there is guidance
        policy.settings = self.settings.model_copy(update={"guidance_scale": scale})
        if policy.guided:
            check_factors(policy.settings, self.neutral_scale, "evaluation")
        return policy

    def sigmas(self, steps: int) -> list[float]:
        """The scheduler's noise levels, shifted by the number of tokens where it asks for that, or the recipe's own.

        Raises InputError for another number of steps than that of its own.
        """
        scheduler, own = self.pipeline.scheduler, self.settings.sigmas
        if own and len(own) != steps:
            raise InputError(
                f"schedule.steps (or evaluation.steps) is {steps}; policy.sigmas has {len(own)} noise levels: it must "
                f"be {len(own)}"
            )
        mu = self.dynamic_shift(steps) if scheduler.config.use_dynamic_shifting else None
        scheduler.set_timesteps(steps, sigmas=own or self.even_levels(steps), mu=mu)
        return [float(sigma) for sigma in scheduler.sigmas]

    def unlike_evaluations(self, steps: int) -> str:
        """How the published scheduler's steps differ from those of evaluations; empty if they don't."""
        return ""

    def dynamic_shift(self, steps: int) -> float:
        """Logarithm of the shift that the model gives to this number of tokens (and of steps)."""
        config = self.pipeline.scheduler.config
        return calculate_shift(
            self.tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        rows, columns = self.latent_size
        return (rows // self._patch) * (columns // self._patch)

    def even_levels(self, steps: int) -> Any:
        """Noise levels before the shift, from 1 to 1 / steps, [steps]; None if they are the scheduler's own."""
        own = not self.spaces_levels or self.pipeline.scheduler.config.get("use_flow_sigmas")
        return None if own else np.linspace(1.0, 1 / steps, steps)

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity without guidance, [rows, *latent_shape]; `latents` are in the network's precision."""
        raise NotImplementedError

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        """Predicted velocity, with guidance from one pass of twice the rows."""
        network = network or self.network
        if not self.guided:
            return self.predict(network, latents, sigma, conditioning)
        own = {name: value for name, value in conditioning.items() if not name.startswith(NEGATIVE)}
        both = {name: torch.cat([conditioning.get(NEGATIVE + name, value), value]) for name, value in own.items()}
        twice = latents.repeat(2, *[1] * (latents.dim() - 1))
        without, towards = self.predict(network, twice, sigma.repeat(2), both).float().chunk(2)
        return self.guide(without, towards, sigma)

    def guide(self, without: torch.Tensor, towards: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance, float32 [rows, *latent_shape]: from the negative prompt's velocity to the other."""
        return without + self.guidance(sigma) * (towards - without)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor | Decoded:
        """Pictures of latents that the autoencoder scales and shifts, float32 in [0, 1], [rows, height, width, 3]."""
        return self.draw(latents / self.vae.config.scaling_factor + self.vae.config.shift_factor)

    def draw(self, z: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1] of the autoencoder's own latents, float32 [rows, height, width, 3], or clips
        [rows, frames, height, width, 3].
        """
        drawn = self.vae.decode(z.to(self.vae.dtype)).sample
        return (drawn / 2 + 0.5).clamp(0, 1).float().movedim(1, -1)

    def denormalised(self, latents: torch.Tensor) -> torch.Tensor:
        """[rows, channels, frames, rows, columns], for an autoencoder with a mean and a deviation for each channel."""
        mean, std = self._statistics
        return latents.float() * std.to(latents.device) + mean.to(latents.device)

    def normalised(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of `denormalised`."""
        mean, std = self._statistics
        return (z - mean.to(z)) / std.to(z)

    @property
    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of each channel of the autoencoder, [1, channels, 1, 1, 1]."""
        config = self.vae.config
        mean, std = (torch.tensor(own).reshape(1, -1, 1, 1, 1) for own in (config.latents_mean, config.latents_std))
        return mean, std

    def _built(self, part: Part, build: Builder) -> torch.nn.Module:
        network_class = getattr(diffusers, part.class_name)
        config = network_class.load_config(part.folder, local_files_only=True)
        return build(lambda: network_class.from_config(config), self._weights(part))

    def _weights(self, part: Part) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
        """The weights of a network to start from."""
        for file in weight_files(part):
            with opened(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - no mapping
                    published = partial(stored.get_tensor, name)
                    yield name, partial(self.start.weight, part.name, name, published)

    @torch.no_grad()
    def _take_up(self, networks: Mapping[str, Part]) -> None:
        """Put what training starts from in place of the published weights, as a `Builder` does: from the files."""
        for name, part in networks.items():
            if changed := self.start.changed(name):
                weights = getattr(self.pipeline, name).state_dict()
                for own, read in self._weights(part):
                    if own in changed:
                        weights[own].copy_(read())

    def checkpoint_gradients(self) -> None:
        """Have the networks recompute activations in the backward pass."""
        for network in self._networks.values():
            network.enable_gradient_checkpointing()

    def add_lora(self, settings: LoraSettings) -> None:
        """Freeze the networks and give each its adapters. Raises InputError as `add_adapters` does."""
        for name, network in self._networks.items():
            add_adapters(network, settings, self.lora_modules, (self.start.adapters or {}).get(name))

    def save(self, folder: Path, *, merge: bool = False) -> Path:
        """Save the networks or LoRAs in a folder, and return the path as every policy does.

        A LoRA is merged into the weights with `merge`. It always is if diffusers couldn't load it, or if the weights
        below it aren't the published ones (`start_from`): without them it would be of no use.
        """
        paths, parts = [], self.find_parts(self.folder, self.settings.variant)
        files = [folder / file for file in lora_files(len(self._networks))]
        for (name, network), file in zip(self._networks.items(), files, strict=True):
            adapted = getattr(network, "peft_config", None)
            if adapted and (merge or self.start.changes_any or not hasattr(self.pipeline_class, "save_lora_weights")):
                # The weights below are read from disk: ranks that share them (ZeRO 3) don't hold them.
                network = merged(parts[name], self._weights(parts[name]), network, self.precision)
            elif adapted:
                # The second network's adapters go by the first one's name: diffusers loads them into either.
                save_adapters(network, self.pipeline_class, self.networks[0], file)
                paths.append(file)
                continue
            network.save_pretrained(folder / name, safe_serialization=True)
            paths.append(folder / name)
        return paths[0] if len(paths) == 1 else folder

    @property
    def _networks(self) -> dict[str, Any]:
        """The trained parts, by the pipeline's names."""
        return {name: part for name in self.networks if (part := getattr(self.pipeline, name)) is not None}

    def check_size(self) -> None:
        """Raises InputError for a size that the model can't draw, and for a length in seconds, which sounds have."""
        for name in ("height", "width"):
            if (size := getattr(self.settings, name)) % self.grid:
                raise InputError(f"policy.{name} is {size}; this model draws multiples of {self.grid}")
        if self.settings.frames != 1:
            self.check_frames()
        if self.settings.seconds is not None:
            raise InputError(f"policy.seconds is {self.settings.seconds:g}; this model makes no sounds: leave it out")

    def check_frames(self) -> None:
        """Raises InputError for a number of frames (more than one) that the model can't make."""
        raise InputError(f"policy.frames is {self.settings.frames}; this model draws single pictures, frames 1")
