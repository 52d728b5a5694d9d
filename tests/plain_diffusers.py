"""What plain diffusers draws, and small runs of each family, to be compared with it."""

import json
from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from branchgrpo.cluster.commands.publish import NO_OTHER_GUIDANCE
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.loop import IterationReport
from branchgrpo.proto.prompt import pictures_of
from branchgrpo.proto.settings import PolicySettings
from branchgrpo.rollout_workers.noise import Stream, gaussian
from branchgrpo.rollout_workers.policies import qwen_image_21
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.policies.load import FAMILIES as POLICIES
from branchgrpo.rollout_workers.policies.load import find_adapter
from diffusers import (
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf, resolve_default_image_crf
from families import FAMILIES, PROCESSORS, saved, with_pictures
from PIL import Image
from support import COUNTING, Settings

STEPS = 6
PROMPTS = ("123", "456")
SHORT = {"tokenizer_max_length": 64, "tokenizer_2_max_length": 32, "vision_num_semantic_tokens": 5}
"""Tokens of HunyuanVideo with padding, which changes nothing; the published 2000 would take most of the tests' time."""


class CosineEuler(EDMEulerScheduler):
    """Euler's steps over Stable Audio's noise levels: the published scheduler adds noise."""

    def precondition_noise(self, sigma: torch.Tensor) -> torch.Tensor:
        return CosineDPMSolverMultistepScheduler.precondition_noise(self, sigma)


def prompts_of(family: str) -> tuple[str, ...]:
    """Two prompts, with pictures where the family starts from them."""
    return with_pictures(PROMPTS, FAMILIES[family].pictures)


def plain(folder: str) -> Any:
    """The pipeline as diffusers loads it, which wants to be told of parts that it does without."""
    index: dict[str, Any] = json.loads((Path(folder) / "model_index.json").read_text())
    parts: dict[str, Any] = {name: None for name, value in index.items() if value == [None, None]}
    replaced, needed = {}, {}
    if index["_class_name"] in PROCESSORS:
        adapter: Any = find_adapter(POLICIES[index["_class_name"]].adapter)
        replaced, needed = adapter.replacements(Path(folder)), adapter.needed_parts(Path(folder))
    pipeline = DiffusionPipeline.from_pretrained(folder, **parts, **dict.fromkeys(replaced), **needed)
    pipeline.register_modules(**replaced)
    if SHORT.keys() <= vars(pipeline).keys():
        vars(pipeline).update(SHORT)
    return pipeline


def theirs(*given: Any, **more: Any) -> np.ndarray:
    """What `all_of_theirs` are, of leaves that are either seen or heard."""
    (drawn,) = all_of_theirs(*given, **more).values()
    return drawn


def all_of_theirs(
    pipeline: Any,
    settings: PolicySettings,
    starts: torch.Tensor,
    prompts: Sequence[str] = PROMPTS,
    picture_size: tuple[int, int] | None = None,
    *,
    as_it_is: bool = False,
) -> dict[str, np.ndarray]:
    """What plain diffusers draws from the starts: `pictures` in [0, 1], and `sound` in [-1, 1].

    `as_it_is` with the pipeline's own scheduler. Pictures are read in the height and width of `picture_size`, or those
    that are drawn.
    """
    published, video = pipeline.scheduler, settings.frames > 1
    config, name, accepted = published.config, type(pipeline).__name__, signature(type(pipeline).__call__).parameters
    if as_it_is:
        pass
    elif settings.seconds:
        pipeline.scheduler = CosineEuler.from_config(config)
    elif hasattr(pipeline, "unet"):
        pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    elif "flow_shift" in config:
        first_order = {"solver_order": 1, "disable_corrector": [*range(STEPS)]}
        shift = settings.shift or config.flow_shift
        pipeline.scheduler = type(published).from_config(config, flow_shift=shift, **first_order)
    elif settings.sigmas:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    elif settings.shift:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            config, use_dynamic_shifting=False, shift=settings.shift
        )
    if hasattr(pipeline, "guider"):
        pipeline.guider = pipeline.guider.new(guidance_scale=settings.guidance_scale)
    pipeline.set_progress_bar_config(disable=True)
    given = {
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames,
        "audio_end_in_s": settings.seconds,
        "num_inference_steps": STEPS,
        "sigmas": settings.sigmas,
        "true_cfg_scale" if "Qwen" in name else "guidance_scale": settings.guidance_scale,
        "guidance_scale_2": settings.guidance_scale_2,
        "negative_prompt": settings.negative_prompt,
        "max_sequence_length": min(settings.max_sequence_length, 1024),  # where it is more, nothing is cut
        "max_area": settings.height * settings.width,
        "_auto_resize": False,
        "output_resolution": qwen_image_21.READ_SIDE,
        "output_type": "np",
        "audio_guidance_scale": settings.guidance_scale_2,
        "use_cross_timestep": getattr(pipeline, "transformer", pipeline).config.get("cross_attn_mod"),
        **NO_OTHER_GUIDANCE,
    }
    call = partial(pipeline, **{key: value for key, value in given.items() if key in accepted})
    drawn: dict[str, list[Any]] = {}
    for number, prompt in enumerate(prompts):  # one by one, because some take pictures for all prompts alike
        pictures = [own.fitted(*(picture_size or (settings.height, settings.width))) for own in pictures_of(prompt)]
        image = {"image": pictures[0] if video else pictures} if pictures else {}
        start = {"latents": starts[[number]]}
        if "audio_latents" in accepted:  # which it normalises
            scale, frames = pipeline.vae.spatial_compression_ratio, pipeline.vae.temporal_compression_ratio
            tokens = ((settings.frames - 1) // frames + 1) * settings.height * settings.width // scale**2
            sound = starts[[number], tokens:] * pipeline.audio_vae.latents_std + pipeline.audio_vae.latents_mean
            start = {"latents": starts[[number], :tokens], "audio_latents": sound}
            if image:
                (own,) = pictures_of(prompt)  # which it scales itself, after compressing it
                scale = min(own.image().width / settings.width, own.image().height / settings.height)
                image["image"] = own.fitted(round(settings.height * scale), round(settings.width * scale))
                start["latents"] = with_first_frame(pipeline, settings, start["latents"], image["image"])
        found = call(prompt=str(prompt), **start, **image)
        for key, value in found.items():
            value = np.asarray(value)
            if value.shape[-1] == 4:  # what is transparent is white here
                value = value[..., :3] * value[..., 3:] + 1 - value[..., 3:]
            drawn.setdefault("sound" if key.startswith("audio") else "pictures", []).append(value)
    pipeline.scheduler = published
    return {name: np.concatenate(values) for name, values in drawn.items()}


def with_first_frame(
    pipeline: Any, settings: PolicySettings, start: torch.Tensor, picture: Image.Image
) -> torch.Tensor:
    """The start of a clip whose first frame is a picture, as LTX-2's pipeline makes it where it is given none, in the
    form in which it wants to be given one."""
    quality = resolve_default_image_crf(pipeline.text_encoder)
    compressed = Image.fromarray(apply_image_conditioning_crf(np.asarray(picture), quality))
    pixels = pipeline.video_processor.preprocess(compressed, height=settings.height, width=settings.width)
    sizes = {"height": settings.height, "width": settings.width, "num_frames": settings.frames}
    own, given = pipeline.prepare_latents(pixels, 1, start.shape[-1], **sizes, device="cpu", dtype=torch.float32)
    scale, stride = pipeline.vae.spatial_compression_ratio, pipeline.vae.temporal_compression_ratio
    extent = (settings.frames - 1) // stride + 1, settings.height // scale, settings.width // scale
    whole = pipeline._unpack_latents(torch.where(given[..., None] > 0, own, start), *extent)
    vae = pipeline.vae
    return pipeline._denormalize_latents(whole, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)


def starts(policy: Policy, seed: int) -> torch.Tensor:
    return torch.stack([gaussian(seed, 0, i, 0, Stream.START, policy.latent_shape) for i in range(len(PROMPTS))])


def two_iterations(
    settings: PolicySettings, lora: dict[str, int] | None, run_settings: Settings, prompts: Sequence[str] = PROMPTS
) -> list[IterationReport]:
    """Two iterations with all that saves memory in one process."""
    run = run_settings(
        {
            "policy": settings.model_dump(),
            "schedule": {"steps": 3, "splits": {0: 2, 1: 2}, "eta": 0.5},
            "rewards": COUNTING,
            "prompts.per_iteration": 2,
            "learner.updates_per_iteration": 1,
            "learner.lora": lora,
            "learner.zero_stage": 2,
            "learner.gradient_checkpointing": True,
            "learner.optimizer": {"learning_rate": 1e-3},
        }
    )
    loop = InProcessLoop(run, prompts)
    return [loop.iterate(number) for number in (1, 2)]


def policy_of(family: str, folder: Path) -> PolicySettings:
    """A small policy of a family, with guidance."""
    own = FAMILIES[family]
    return PolicySettings(
        pretrained=str(saved(family, folder)),
        height=own.size[0],
        width=own.size[1],
        frames=own.frames,
        seconds=own.seconds,
        guidance_scale=3.0,
        negative_prompt=own.negative_prompt,
        max_sequence_length=own.tokens,
        precision="float32",
        device="cpu",
    )
