"""The common part of policies over diffusers pipelines. Each family adds a file beside it."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from ...proto.errors import InputError
from ...proto.settings import PolicySettings
from ...proto.tree import Conditioning
from .attention import choose_attention
from .base import Builder, Network
from .compiling import compile_network
from .decoded import Decoded
from .folder import Part, find_parts, read_json
from .guidance import check_factors, check_second
from .networks import Networks
from .noise_levels import NoiseLevels
from .prompt_encoding import NEGATIVE, PromptEncoding
from .read_lora import Published
from .read_start import StartReader
from .start import Start
from .weights import find_problems, one_line


class PipelinePolicy(Networks, NoiseLevels, PromptEncoding):
    """A diffusers pipeline as a policy. A family says how its network is called, and what surrounds it.

    It defines `embed` and `predict`, and where it differs what stands here.
    """

    result: ClassVar[str] = "images"  # what the pipeline's output calls its leaves; or `frames`, `audios`
    float32_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that stay in float32 at any precision."""
    decoder_parts: ClassVar[tuple[str, ...]] = ("vae",)
    """The pipeline's parts that decode."""
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
            published = Published(self.pipeline_class, folder, networks, prefixes, self.needed_parts)
            self.start = StartReader(published).read(settings.start_from)
        try:
            replacements = self.replacements(folder)
            if build:
                absent |= {name: self.build_network(part, build) for name, part in networks.items()}
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
        check_second(settings, guided=self.guided, known=len(self.loaded_networks) > 1 or self.scales_sound)
        if self.guided:
            check_factors(settings, self.neutral_scale)
        self.check_size()
        if not build:
            self.network.to(device)
            # diffusers would keep a few layers of some families in float32. The engine that trains them would not.
            for parameter in self.network.parameters():
                parameter.data = parameter.data.to(self.precision)
            self.take_up_start(networks)
        for network in self.loaded_networks.values():
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
    def stand_in(cls, part: Part) -> Any:
        """What the pipeline is made with in place of a part that isn't loaded."""
        return None

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

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        rows, columns = self.latent_size
        return (rows // self._patch) * (columns // self._patch)

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
