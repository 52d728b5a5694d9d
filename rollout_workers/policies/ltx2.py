"""LTX-2, 2.3 and 2.5: a leaf is a clip with its sound."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf, resolve_default_image_crf
from PIL import Image, ImageOps

from ...proto.errors import InputError
from ...proto.prompt import pictures_of
from ...proto.tree import Conditioning
from .base import Network
from .clips import ClipPolicy
from .decoded import Decoded
from .folder import read_json

FRAME_RATE = 24.0


class LTX2Policy(ClipPolicy):
    """`LTX2Pipeline`. A state is the tokens of the clip, one for each latent, and then those of its sound, [tokens,
    channels].

    Guidance is towards the prompt alone; the clip has `guidance_scale`, the sound `guidance_scale_2`. With a picture,
    that is the first frame.
    """

    pipeline_class = LTX2Pipeline
    spaces_levels = True
    absent: ClassVar[dict[str, Any]] = dict.fromkeys(("processor", "prompt_enhancer", "duration_head"))
    encoding_parts = (*ClipPolicy.encoding_parts, "connectors", "vae")
    decoder_parts = (*ClipPolicy.decoder_parts, "audio_vae", "vocoder")
    scales_sound = True
    scales_pictures = True

    @property
    def frame_scale(self) -> int:
        """Frames of a latent, after the first."""
        return int(self.network.config.vae_scale_factors[0])

    @property
    def scale(self) -> int:
        """Pixels along the side of a latent."""
        return int(self.network.config.vae_scale_factors[1])

    @property
    def tokens(self) -> int:
        """Tokens of a clip, without its sound."""
        return self.latent_frames * super().tokens

    @property
    def sound_tokens(self) -> int:
        """Tokens of the sound."""
        config = self.network.config
        per_second = config.audio_sampling_rate / config.audio_hop_length / config.audio_scale_factor
        return round(self.settings.frames / FRAME_RATE * per_second)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[tokens, channels]."""
        return self.tokens + self.sound_tokens, self.network.config.in_channels

    def check_size(self) -> None:
        """Raises InputError for a size that the model can't draw, prompts of a length that it can't take, and another
        model than the published ones, whose tokens are all alike."""
        config, alike = self.network.config, {"patch_size": 1, "patch_size_t": 1}
        alike["audio_in_channels"] = config.in_channels
        if other := {name: config[name] for name, value in alike.items() if config[name] != value}:
            raise InputError(f"policy.pretrained is '{self.folder}', whose network has {other}; it must have {alike}")
        if self.autoencoder.get("timestep_conditioning"):
            raise InputError(
                f"policy.pretrained is '{self.folder}', whose autoencoder adds noise: that isn't supported"
            )
        connectors, length = read_json(self.folder / "connectors" / "config.json"), self.settings.max_sequence_length
        if length % (registers := connectors["video_connector_num_learnable_registers"] or 1):
            raise InputError(f"policy.max_sequence_length is {length}; this model takes multiples of {registers}")
        super().check_size()

    @property
    def guided(self) -> bool:
        """Whether clip or sound has a guidance scale above 1; diffusers guides both then."""
        return max(self.settings.guidance_scale, self.settings.guidance_scale_2 or 0) > 1

    def guidance(self, sigma: torch.Tensor) -> float | torch.Tensor:
        """The scale of each token, [tokens, 1]."""
        clip, sound = self.settings.guidance_scale, self.settings.guidance_scale_2
        if sound is None:
            return clip
        scales = [clip] * self.tokens + [sound] * self.sound_tokens
        return torch.tensor(scales, device=sigma.device).unsqueeze(1)

    def as_encoded(self, prompt: str) -> str:
        """A prompt without spaces around it."""
        return str(prompt).strip()

    def embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """What the connectors make of the states of all layers, for the clip and for the sound, and their mask."""
        length = self.settings.max_sequence_length
        states, mask, *_ = self.pipeline.encode_prompt(
            str(prompt), do_classifier_free_guidance=False, max_sequence_length=length, device=self.device
        )
        clip, sound, mask = self.pipeline.connectors(states, mask, padding_side=self.pipeline.tokenizer.padding_side)
        return {"clip_embeds": clip[0], "sound_embeds": sound[0], "prompt_mask": mask[0]}

    def pictures_of(self, prompt: str) -> list[Image.Image]:
        """The pictures of a prompt, cut to the ratio of `picture_size`, but as large as they are."""
        (height, width), images = self.picture_size, [picture.image() for picture in pictures_of(prompt)]
        scales = [min(image.width / width, image.height / height) for image in images]
        sizes = [(round(width * scale), round(height * scale)) for scale in scales]
        return [ImageOps.fit(*both, Image.Resampling.LANCZOS) for both in zip(images, sizes, strict=True)]

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Latents of the first frame, [tokens of a frame, channels], with H.264's losses as in the model's training,
        which it has before it is scaled."""
        quality, (height, width) = resolve_default_image_crf(self.pipeline.text_encoder), self.picture_size
        compressed = Image.fromarray(apply_image_conditioning_crf(np.asarray(pictures[0]), quality))
        scaled = compressed.resize((width, height), Image.Resampling.BILINEAR)  # as LTX2ImageToVideoPipeline does
        z, vae = self.encode_pictures([scaled], frames=1)[0].flatten(1).T, self.vae
        return {"first_frame": (z - vae.latents_mean) * vae.config.scaling_factor / vae.latents_std}

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity of both, which look at each other.

        A first frame has no noise in the network's input. Its velocity leads from where it is straight to the picture.
        """
        clip, sound = latents.to(self.precision).split([self.tokens, self.sound_tokens], dim=1)
        timestep, (rows, columns) = sigma * self.pipeline.scheduler.config.num_train_timesteps, self.latent_size
        first, levels = conditioning.get("first_frame"), timestep
        if first is not None:
            clip = torch.cat([first.to(clip), clip[:, rows * columns :]], dim=1)
            levels = timestep[:, None].repeat(1, self.tokens)
            levels[:, : rows * columns] = 0
        both = network(
            hidden_states=clip,
            audio_hidden_states=sound,
            encoder_hidden_states=conditioning["clip_embeds"],
            audio_encoder_hidden_states=conditioning["sound_embeds"],
            timestep=levels,
            audio_timestep=timestep,
            sigma=timestep,
            use_cross_timestep=self.network.config.cross_attn_mod,  # from LTX-2.3 on
            encoder_attention_mask=conditioning["prompt_mask"],
            audio_encoder_attention_mask=conditioning["prompt_mask"],
            num_frames=self.latent_frames,
            height=rows,
            width=columns,
            fps=FRAME_RATE,
            audio_num_frames=self.sound_tokens,
            return_dict=False,
        )
        velocity = torch.cat(both, dim=1)
        if first is None:
            return velocity
        straight = (latents[:, : rows * columns].float() - first.float()) / sigma.reshape(-1, 1, 1)
        return torch.cat([straight, velocity[:, rows * columns :].float()], dim=1)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> Decoded:
        """Clips of 24 frames per second, and their sounds."""
        clip, sound = latents.float().split([self.tokens, self.sound_tokens], dim=1)
        vae, audio_vae, vocoder = (getattr(self.pipeline, name) for name in self.decoder_parts)
        clip = clip * vae.latents_std / vae.config.scaling_factor + vae.latents_mean
        z = clip.transpose(1, 2).unflatten(2, (self.latent_frames, *self.latent_size))
        sound = sound * audio_vae.latents_std + audio_vae.latents_mean
        z_sound = sound.unflatten(2, (audio_vae.config.latent_channels, -1)).transpose(1, 2)
        waveform = vocoder(audio_vae.decode(z_sound.to(audio_vae.dtype)).sample)
        return Decoded(self.draw(z), waveform.float(), FRAME_RATE, vocoder.config.output_sampling_rate)


class LTX2FromPicturePolicy(LTX2Policy):
    """`LTX2ImageToVideoPipeline`: a clip that begins with a picture."""

    pipeline_class = LTX2ImageToVideoPipeline
