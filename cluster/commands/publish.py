"""A whole pipeline with what a run has trained in its place, and a model card: ready to publish."""

import inspect
import json
import os
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ...proto.atomic_files import whole
from ...proto.settings import PolicySettings, RunSettings
from ...rollout_workers.policies.folder import INDEX, Part, find_parts, read_json, weight_files
from ...rollout_workers.policies.load import EMBEDDED
from ...rollout_workers.policies.ltx2 import FRAME_RATE
from ...rollout_workers.policies.pipeline import PipelinePolicy
from ..run.evaluation import MADE_WITH, comparable, evaluation_steps
from ..run.folder import RunFolder

WEIGHT_ENDS = (".safetensors", ".bin", ".msgpack", ".h5", ".onnx", ".pt", ".ckpt", ".bin.index.json")
LICENCE_KEYS = ("license", "license_name", "license_link")
PLACE = "PATH_OR_REPOSITORY"
"""Stands on a model card where the user writes where the pipeline is."""
RESULT_KINDS = {"images": "image", "frames": "video", "audios": "audio"}
"""What a pipeline calls its results -> what they are, in the Hub's words."""
NO_OTHER_GUIDANCE = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
NO_OTHER_GUIDANCE |= {f"audio_{name}": value for name, value in NO_OTHER_GUIDANCE.items()}
"""Turns off what LTX-2's pipeline does beside classifier-free guidance."""
PICTURE = "picture.png"
"""Stands there for the picture to start from."""

CLIP = "clip.mp4"
SAVING = (
    f'encode_video(drawn, fps={FRAME_RATE:g}, output_path="{CLIP}", audio=sound, '
    "audio_sample_rate=pipe.vocoder.config.output_sampling_rate)"
)
"""Saves a clip of LTX-2 with its sound there, which needs the package av."""


def publish(folder: RunFolder, policy: PipelinePolicy, iteration: int, out: Path, *, ema: bool) -> None:
    """Write the pipeline of a policy into the new folder `out`, with its trained networks, LoRAs merged.

    The scheduler is the one that evaluations use, or with Stable Audio the published one. Weights of the other parts
    are hard links to the base model's files where the file system allows it, and copies elsewhere.
    """
    with whole(out) as temporary:
        temporary.mkdir()
        policy.save(temporary, merge=True)
        scheduler = policy.pipeline.scheduler
        scheduler.save_pretrained(temporary / "scheduler")
        for name, part in find_parts(policy.folder, policy.settings.variant).items():
            if part and not (temporary / name).exists():
                _take_over(part, temporary / name)
        for licence in policy.folder.glob("LICENSE*"):
            shutil.copyfile(licence, temporary / licence.name)
        index = read_json(policy.folder / INDEX) | {"scheduler": ["diffusers", type(scheduler).__name__]}
        (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(folder.path / "recipe.yaml", temporary / "recipe.yaml")
        (temporary / "README.md").write_text(model_card(folder, policy, iteration, ema=ema), encoding="utf-8")


def upload_command(name: str, out: Path) -> str:
    """The command line that uploads a folder as a model of one's own on the Hugging Face Hub."""
    return shlex.join(["hf", "upload", name, str(out), "."])


def _take_over(part: Part, to: Path) -> None:
    """Link the files of a part that are loaded."""
    chosen = weight_files(part) if part.has_weights else None
    for file in part.folder.rglob("*"):
        is_weight = file.name.endswith(WEIGHT_ENDS)
        if file.is_dir() or (is_weight and chosen is not None and file not in chosen):
            continue
        target = to / file.relative_to(part.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_weight:
            with suppress(OSError):
                os.link(file.resolve(), target)
        if not target.exists():
            shutil.copyfile(file, target)


def model_card(folder: RunFolder, policy: PipelinePolicy, iteration: int, *, ema: bool) -> str:
    """A model card for the Hugging Face Hub: what the model was made of and how, its rewards, and how it is loaded."""
    settings, (base, is_on_hub) = folder.settings, base_model(policy.folder)
    made, unlike = RESULT_KINDS[policy.result], policy.unlike_evaluations(evaluation_steps(settings))
    data = ModelCardData(
        base_model=base if is_on_hub else None,
        library_name="diffusers",
        pipeline_tag=f"{'image' if settings.prompts.picture_column else 'text'}-to-{made}",
        tags=["branchgrpo", "reinforcement-learning"],
        **_licence(policy.folder),
    )
    sampling = {
        "steps in training": settings.schedule.build().grid_steps,
        "steps in evaluation": evaluation_steps(settings),
        **_levels(settings.policy),
        "guidance scale in training": settings.policy.guidance_scale,
        **_extent(settings.policy, made),
    }
    rewards = ", ".join(f"{name} (weight {reward.weight:g})" for name, reward in settings.rewards.items())
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"\n# {settings.name}\n",
            f"`{base}`, aligned with rewards by BranchGRPO: {rewards}; iteration {iteration}"
            f"{', running average of the weights' if ema else ''}. [recipe.yaml](recipe.yaml) has all settings.",
            "" if data.to_dict().get("license") else "\nThe base model's licence applies; its folder doesn't name it.",
            "\n## Rewards of held-out prompts\n",
            *_rewards(folder, iteration, ema=ema),
            "\n## Sampling\n\n| | |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in sampling.items()),
            *([f"\nThe published scheduler, which this pipeline has, {unlike}."] if unlike else []),
            f"\n## Use\n\n```python\n{usage(settings, policy)}\n```\n",
        ]
    )


def _levels(settings: PolicySettings) -> dict[str, Any]:
    """What decides on the noise levels."""
    if settings.sigmas:
        return {"noise levels": ", ".join(map(str, settings.sigmas))}
    return {"shift": "the base model's" if settings.shift is None else settings.shift}


def _extent(policy: PolicySettings, made: str) -> dict[str, str]:
    """The size and length of what a policy makes, for the model card."""
    if made == "audio":
        return {"seconds": "the longest" if policy.seconds is None else f"{policy.seconds:g}"}
    frames = f", {policy.frames} frames" if policy.frames > 1 else ""
    return {"height x width": f"{policy.height} x {policy.width}{frames}"}


def base_model(folder: Path) -> tuple[str, bool]:
    """The name of the model in a folder, and whether the Hub knows it by that: its repository's if it lies in the Hub's
    cache, an embedded model's, or the folder's."""
    cached = [path.name for path in (folder, *folder.parents) if path.name.startswith("models--")]
    if cached:
        return cached[0].removeprefix("models--").replace("--", "/"), True
    embedded = (name for name, own in EMBEDDED.items() if own == folder)
    return next(embedded, folder.resolve().name), False


def _licence(folder: Path) -> dict[str, Any]:
    """What the model card in a folder says of its licence."""
    with suppress(OSError, ValueError):
        data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
        return {key: data[key] for key in LICENCE_KEYS if key in data}
    return {}


def _rewards(folder: RunFolder, iteration: int, *, ema: bool) -> list[str]:
    """The rewards of held-out prompts before training and at an iteration, as a table, or why there are none."""
    every = folder.lines("evaluations")
    lines = {line["iteration"]: line for line in comparable(every)}
    if ema:
        return ["None are known of the running average: the run's evaluations draw with the weights themselves."]
    if iteration not in (line["iteration"] for line in every):
        return [f"None are known of iteration {iteration}, which the run didn't evaluate."]
    first = min(lines, default=iteration)
    if first >= iteration or iteration not in lines:
        return [f"The run has no earlier evaluation that can be compared with that of iteration {iteration}."]
    names = [name for name in lines[iteration] if name in lines[first] and name not in ("iteration", MADE_WITH)]
    rows = [f"| {name} | {lines[first][name]:.4f} | {lines[iteration][name]:.4f} |" for name in names]
    return [f"| | iteration {first} | iteration {iteration} |\n|---|---|---|", *rows]


def usage(run: RunSettings, policy: PipelinePolicy) -> str:
    """Python that draws as evaluations do, for what of it the pipeline's call takes."""
    settings, accepted = run.policy, inspect.signature(policy.pipeline_class.__call__).parameters
    guidance = settings.guidance_scale if run.evaluation.guidance_scale is None else run.evaluation.guidance_scale
    qwen = policy.pipeline_class.__name__.startswith("QwenImage")  # which has no guidance without a negative prompt
    given = {
        "height": settings.height,
        "width": settings.width,
        "num_inference_steps": evaluation_steps(run),
        "sigmas": settings.sigmas,
        "true_cfg_scale" if qwen else "guidance_scale": guidance,
        "max_area": settings.height * settings.width,  # Kontext would draw, and read, sizes of its own
        "_auto_resize": False,
        "num_frames": settings.frames,
        "audio_end_in_s": settings.seconds,
        "guidance_scale_2": settings.guidance_scale_2,
        "audio_guidance_scale": settings.guidance_scale_2 or guidance,
        **NO_OTHER_GUIDANCE,
        "use_cross_timestep": getattr(policy.network, "config", {}).get("cross_attn_mod"),  # of LTX-2
        "negative_prompt": settings.negative_prompt if qwen and guidance > 1 else settings.negative_prompt or None,
        # diffusers doesn't cut what Qwen-Image-Edit reads, and refuses the length that pictures need.
        "max_sequence_length": None if "Edit" in policy.pipeline_class.__name__ else settings.max_sequence_length,
    }
    arguments = [f"{key}={value!r}" for key, value in given.items() if key in accepted and value is not None]
    variant = f", variant={settings.variant!r}" if settings.variant else ""
    imported, read, kind, guided = "", "", "DiffusionPipeline", ""
    if hasattr(policy.pipeline, "guider"):
        guided = f"pipe.guider = pipe.guider.new(guidance_scale={guidance!r})\n"
    if run.prompts.picture_column:
        if "image" not in accepted:  # Wan 2.2 5B and LTX-2, whose folders name the pipeline from texts
            kind = policy.pipeline_class.__name__.replace("Pipeline", "ImageToVideoPipeline")
        imported = "from PIL import Image, ImageOps\n"
        (height, width), size, read = policy.picture_size, "", f'picture = Image.open("{PICTURE}").convert("RGB")\n'
        if policy.scales_pictures:
            read += f"scale = min(picture.width / {width}, picture.height / {height})\n"
            size = f"(round({width} * scale), round({height} * scale))"
        read += f"picture = ImageOps.fit(picture, {size or (width, height)}, Image.Resampling.LANCZOS)\n"
        arguments.insert(0, "image=picture")
    call = f'pipe(prompt="a prompt", {", ".join(arguments)})'
    drawn = f"drawn = {call}.{policy.result}[0]"
    if policy.scales_sound:
        imported = f"from diffusers.utils import encode_video\n{imported}"
        drawn = f"made = {call}\ndrawn, sound = made.{policy.result}[0], made.audio[0].float().cpu()\n{SAVING}"
    return (
        f"import torch\nfrom diffusers import {kind}\n{imported}\n{read}"
        f'pipe = {kind}.from_pretrained("{PLACE}", dtype=torch.{settings.precision}{variant})\n{guided}{drawn}'
    )
