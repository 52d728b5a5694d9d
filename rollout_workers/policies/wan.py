"""Wan 2.1 and 2.2, text to video and picture to video: a leaf is a clip."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
from PIL import Image
from torch import distributed

from ...proto.errors import InputError
from ...proto.tree import Conditioning
from .base import Network
from .clips import ClipPolicy
from .decoded import Decoded

TOKENS_BESIDE_CLIP = 512
"""Tokens of a prompt in a network that also gets CLIP's, which come before them."""


class WanPolicy(ClipPolicy):
    """`WanPipeline`. A state is the latents of one clip, [channels, frames, rows, columns].

    Noise levels are those of the published scheduler, UniPC. Wan 2.2 5B may get a picture, the first frame of the clip.
    """

    pipeline_class = WanPipeline
    networks = ("transformer", "transformer_2")
    checkpoint_prefixes = {"transformer": "high.", "transformer_2": "low."}  # noqa: RUF012 - of `Experts`
    takes_sigmas = False
    float32_parts = ("vae",)  # as diffusers advises: clips suffer from less
    encoding_parts = (*ClipPolicy.encoding_parts, "vae")
    lora_modules: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def find_network(self) -> torch.nn.Module:
        """The loaded network, or Wan 2.2's two networks as one."""
        first, second = self.pipeline.transformer, self.pipeline.transformer_2
        if second is None:
            return first
        return Experts(first, second, self._boundary)

    @property
    def _boundary(self) -> float:
        """Timestep from which on the first of two networks is the right one."""
        return float(self.pipeline.config.boundary_ratio * self._timesteps)

    def guidance(self, sigma: torch.Tensor) -> float | torch.Tensor:
        """The scale of the network that is used at each noise level."""
        first, second = self.settings.guidance_scale, self.settings.guidance_scale_2
        if second is None:
            return first
        return torch.where(self._timestep(sigma) >= self._boundary, first, second).reshape(-1, 1, 1, 1, 1)

    def scheduler(self, published: Any) -> Any:
        """UniPC of the first order, whose steps are Euler's, with the recipe's shift or the published one."""
        own = published.config.get("flow_shift", published.config.get("shift", 1.0))
        return UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=own if self.settings.shift is None else self.settings.shift,
            solver_order=1,
            disable_corrector=[*range(published.config.num_train_timesteps)],  # after any step
        )

    @property
    def _timesteps(self) -> int:
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    def _timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """Noise levels as the published scheduler counts them, whole and below the number of training steps."""
        return (sigma * self._timesteps).floor().clamp(max=self._timesteps - 1)

    @property
    def scale(self) -> int:
        """Pixels along the side of a latent."""
        return int(self.autoencoder.get("scale_factor_spatial", 8))

    @property
    def _patch(self) -> int:
        return int(self.pipeline.transformer.config.patch_size[1])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, frames, rows, columns] of latents."""
        return self.pipeline.transformer.config.out_channels, self.latent_frames, *self.latent_size

    @property
    def frame_scale(self) -> int:
        """Frames of a latent, after the first."""
        return int(self.autoencoder.get("scale_factor_temporal", 4))

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """UMT5's embedding of every token."""
        embeds, _ = self.pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds[0].to(self.precision)}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity, with noise levels counted in training steps: one per row, or in Wan 2.2 5B one per token.

        A first frame has no noise in the network's input. Its velocity leads from where it is straight to the picture.
        """
        timestep, first, states = self._timestep(sigma), conditioning.get("first_frame"), latents
        if self.pipeline.config.expand_timesteps:
            frames, rows, columns = latents.shape[2:]
            timestep = timestep[:, None, None].repeat(1, frames, rows * columns // self._patch**2)
            if first is not None:
                timestep[:, 0] = 0
                states = torch.cat([first.to(latents.dtype), latents[:, :, 1:]], dim=2)
            timestep = timestep.flatten(1)
        beside = [conditioning["clip"].to(latents.dtype)] if "clip" in conditioning else []
        seen = {"encoder_hidden_states_image": conditioning["seen"]} if "seen" in conditioning else {}
        velocity = network(
            hidden_states=torch.cat([states, *beside], dim=1).to(self.precision),
            timestep=timestep,
            encoder_hidden_states=conditioning["prompt_embeds"],
            return_dict=False,
            **seen,
        )[0]
        if first is None:
            return velocity
        straight = (latents[:, :, :1].float() - first.float()) / sigma.reshape(-1, 1, 1, 1, 1)
        return torch.cat([straight, velocity[:, :, 1:].float()], dim=2)

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Latents of the first frame, [channels, 1, rows, columns]."""
        return {"first_frame": self.normalised(self.encode_pictures(pictures, frames=1))[0]}

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> Decoded:
        """Clips of 16 frames per second, those of Wan 2.2 5B of 24."""
        rate = 24.0 if self.pipeline.config.expand_timesteps else 16.0
        return Decoded(self.draw(self.denormalised(latents)), frame_rate=rate)


class WanImageToVideoPolicy(WanPolicy):
    """`WanImageToVideoPipeline`: a clip that begins with a picture.

    The network of Wan 2.1 and of Wan 2.2 14B sees a clip of the picture and then grey beside a state, as further
    channels; that of Wan 2.1 also what CLIP sees in the picture.
    """

    pipeline_class = WanImageToVideoPipeline
    encoding_parts = (*WanPolicy.encoding_parts, "image_encoder", "image_processor")
    lora_modules = (*WanPolicy.lora_modules, "add_k_proj", "add_v_proj")

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """UMT5's embedding of every token, for a network with CLIP padded to the length by which that tells them from
        CLIP's."""
        embeds = super().embed(prompt)["prompt_embeds"]
        padding = TOKENS_BESIDE_CLIP - len(embeds) if self._sees else 0
        return {"prompt_embeds": torch.nn.functional.pad(embeds, (0, 0, 0, padding))}

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """A mask of the frames that are given, and the latents of the clip, [channels, frames, rows, columns]; and
        CLIP's states. Of Wan 2.2 5B the latents of the first frame."""
        if self.pipeline.config.expand_timesteps:
            return super().embed_pictures(pictures)
        clip = self.normalised(self.encode_pictures(pictures, frames=self.settings.frames))[0]
        given = clip.new_zeros(self.frame_scale, *clip.shape[1:])
        given[:, 0] = 1
        found = {"clip": torch.cat([given, clip])}
        if self._sees:
            found["seen"] = self.pipeline.encode_image(pictures[0], self.device)[0].to(self.precision)
        return found

    @property
    def _sees(self) -> bool:
        return self.pipeline.transformer.config.image_dim is not None

    def check_size(self) -> None:
        """Raises InputError for a size that the model can't draw, or a model that starts from two pictures."""
        if self.pipeline.transformer.config.pos_embed_seq_len is not None:
            raise InputError(
                f"policy.pretrained is '{self.folder}', which needs a clip's first and last frames; only models that "
                "start from the first frame alone are supported"
            )
        super().check_size()


class Experts(torch.nn.Module):
    """Wan 2.2's two networks as one: the first for rows of timestep `boundary` and above, the second for the rest.

    Ranks that train together gather weights (ZeRO 3) and reduce gradients (ZeRO 2) in step, so there a network without
    rows of its own is given one too.
    """

    def __init__(self, high: torch.nn.Module, low: torch.nn.Module, boundary: float) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **more: Any
    ) -> tuple[torch.Tensor]:
        """Each row through its network, as diffusers calls one."""
        above = timestep.reshape(len(timestep), -1)[:, 0] >= self.boundary
        channels: Any = self.high.config.out_channels  # type: ignore[union-attr]  # of diffusers
        velocity = hidden_states.new_zeros(len(hidden_states), channels, *hidden_states.shape[2:])
        for network, own in ((self.high, above), (self.low, ~above)):
            rows = own.nonzero()[:, 0]
            if not len(rows) and not self._in_step:
                continue
            taken = rows if len(rows) else slice(0, 1)
            beside = {name: value[taken] if isinstance(value, torch.Tensor) else value for name, value in more.items()}
            predicted = network(hidden_states[taken], timestep[taken], encoder_hidden_states[taken], **beside)[0]
            if len(rows):
                velocity = velocity.index_copy(0, rows, predicted.to(velocity.dtype))
            else:  # what it does to the gradient is nothing, and the backward pass is in step too
                velocity = velocity + 0 * predicted
        return (velocity,)

    @property
    def _in_step(self) -> bool:
        trained = torch.is_grad_enabled() and distributed.is_initialized() and distributed.get_world_size() > 1
        return trained or hasattr(next(self.parameters()), "ds_id")

    def enable_adapters(self) -> None:
        """Use the adapters of both networks."""
        for network in (self.high, self.low):
            network.enable_adapters()  # type: ignore[operator]

    def disable_adapters(self) -> None:
        """Compute without the adapters of both networks."""
        for network in (self.high, self.low):
            network.disable_adapters()  # type: ignore[operator]
