"""Families of models, each with a small random pipeline of diffusers' own classes in the published layout."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from branchgrpo.proto.pictures import find_pictures
from branchgrpo.proto.prompt import Prompt
from diffusers import DiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from small_pipelines.chroma import chroma
from small_pipelines.flux import flux, flux2_dev, flux2_klein, flux_kontext
from small_pipelines.hunyuan_video import hunyuan_video, hunyuan_video_from_picture
from small_pipelines.ltx2 import ltx2, ltx2_from_picture, ltx23, ltx25
from small_pipelines.qwen_image import qwen_image, qwen_image_21, qwen_image_edit, qwen_image_edit_plus
from small_pipelines.stable_audio import stable_audio
from small_pipelines.stable_diffusion import stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from small_pipelines.wan import wan, wan_from_picture
from small_pipelines.z_image import z_image


class Family(NamedTuple):
    """A family, and what its tests draw."""

    build: Callable[[], DiffusionPipeline]
    pictures: int = 0
    """Pictures that each prompt has."""
    tokens: int = 6
    """Maximum tokens of a prompt: templates are long where a token is a character."""
    frames: int = 1
    seconds: float | None = None
    size: tuple[int, int] = (16, 32)
    """Height and width."""
    negative_prompt: str = "9"
    """Empty where the model has no other."""


STATISTICS = {"latents_mean": [0.1, -0.2, 0.0, 0.3], "latents_std": [1.0, 2.0, 1.5, 0.5]}
"""Of an autoencoder's channels."""
FAMILIES = {
    "Chroma": Family(chroma),
    "FLUX.1-dev": Family(lambda: flux(dev=True), negative_prompt=""),
    "FLUX.1-schnell": Family(lambda: flux(dev=False), negative_prompt=""),
    "FLUX.1 Kontext": Family(flux_kontext, pictures=1, negative_prompt=""),
    "FLUX.2 dev": Family(flux2_dev, pictures=2, tokens=40, size=(64, 96), negative_prompt=""),
    "FLUX.2 klein": Family(flux2_klein, tokens=40, negative_prompt=""),
    "FLUX.2 klein, pictures": Family(  # of which FLUX.2 refuses small ones
        lambda: flux2_klein(halvings=3), pictures=2, tokens=40, size=(64, 96), negative_prompt=""
    ),
    "HunyuanVideo 1.5": Family(hunyuan_video, frames=5, tokens=40),
    "HunyuanVideo 1.5, picture": Family(hunyuan_video_from_picture, pictures=1, frames=5, tokens=40),
    "LTX-2": Family(ltx2, frames=5, tokens=8, size=(32, 64)),
    "LTX-2, picture": Family(lambda: ltx2_from_picture(ltx2()), pictures=1, frames=5, tokens=8, size=(32, 64)),
    "LTX-2.3, picture": Family(lambda: ltx2_from_picture(ltx23()), pictures=1, frames=5, tokens=8, size=(32, 64)),
    "LTX-2.5": Family(ltx25, frames=5, tokens=8, size=(32, 64)),
    "Qwen-Image": Family(qwen_image, tokens=200),
    "Qwen-Image 2.1": Family(qwen_image_21, tokens=60, size=(32, 64)),
    "Qwen-Image 2.1, pictures": Family(qwen_image_21, pictures=2, tokens=110, size=(32, 64)),
    "Qwen-Image-Edit": Family(qwen_image_edit, pictures=1, tokens=500),
    "Qwen-Image-Edit Plus": Family(qwen_image_edit_plus, pictures=2, tokens=500),
    "Stable Audio": Family(stable_audio, seconds=0.4),
    "SD3.5": Family(stable_diffusion_3),
    "SD3.5 without T5": Family(lambda: stable_diffusion_3(t5=False)),
    "SD1.5": Family(lambda: stable_diffusion(prediction="epsilon")),
    "SD2.1 (v)": Family(lambda: stable_diffusion(prediction="v_prediction")),
    "SDXL": Family(lambda: stable_diffusion_xl(prediction="epsilon")),
    "SDXL (v)": Family(lambda: stable_diffusion_xl(prediction="v_prediction", **STATISTICS)),
    "Wan 2.1": Family(wan, frames=5),
    "Wan 2.2 14B": Family(lambda: wan(experts=True), frames=5),
    "Wan 2.2 5B": Family(lambda: wan(expand_timesteps=True), frames=5),
    "Wan 2.1, picture": Family(lambda: wan_from_picture(clip=True), pictures=1, frames=5, tokens=512),
    "Wan 2.2 14B, picture": Family(lambda: wan_from_picture(experts=True), pictures=1, frames=5),
    "Wan 2.2 5B, picture": Family(lambda: wan_from_picture(expand_timesteps=True), pictures=1, frames=5),
    "Z-Image": Family(z_image, tokens=40),
}

PROCESSORS = {
    "Flux2Pipeline": {"tokenizer": ["transformers", "PixtralProcessor"]},
    "QwenImage21Pipeline": {"processor": ["transformers", "Qwen3VLProcessor"]},
    "QwenImageEditPipeline": {"processor": ["transformers", "Qwen2VLProcessor"]},
    "QwenImageEditPlusPipeline": {"processor": ["transformers", "Qwen2VLProcessor"]},
}
"""Parts that need torchvision, by their published classes. Here only what doesn't need it is in their folders."""


def with_pictures(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """Prompts with so many random pictures each, of another size than what is drawn."""
    generator = np.random.default_rng(0)

    def picture() -> bytes:
        with io.BytesIO() as file:
            Image.fromarray(generator.integers(0, 256, (3, 5, 3), np.uint8)).resize((50, 30)).save(file, "PNG")
            return file.getvalue()

    every = [find_pictures([picture() for _ in range(count)], "image", Path()) if count else () for _ in texts]
    return tuple(Prompt(text, pictures=own) for text, own in zip(texts, every, strict=True))


def saved(name: str, folder: Path) -> Path:
    """The pipeline of a family in `folder`."""
    torch.manual_seed(0)
    pipeline = FAMILIES[name].build()
    for part in ("transformer", "transformer_2", "unet"):
        for parameter in getattr(pipeline, part, None).parameters() if getattr(pipeline, part, None) else ():
            torch.nn.init.normal_(parameter, std=0.1)  # zero-initialised layers would hide what goes through them
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | PROCESSORS.get(type(pipeline).__name__, {})))
    return folder


def networks(pipeline: Any) -> dict[str, Any]:
    names = ("transformer", "transformer_2", "unet")
    return {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}


def trained_lora(pipeline: Any, rank: int = 2, alpha: float = 6) -> None:
    """Put adapters with numbers on the networks of a pipeline."""
    torch.manual_seed(1)
    for network in networks(pipeline).values():
        network.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=["to_q", "to_v"], init_lora_weights=False)
        )
        for name, parameter in network.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.5)


def as_lora(pipeline: Any, folder: Path) -> Path:
    """A LoRA in diffusers' form, as `branchgrpo export` writes it; the pipeline has it from then on."""
    trained_lora(pipeline)
    first = next(iter(networks(pipeline)))
    for number, network in enumerate(networks(pipeline).values(), start=1):
        file = f"pytorch_lora_weights{f'_{number}' if number > 1 else ''}.safetensors"
        layers = {f"{first}_lora_layers": get_peft_model_state_dict(network)}
        type(pipeline).save_lora_weights(folder, weight_name=file, **layers, **_collate_lora_metadata({first: network}))
    return folder if len(networks(pipeline)) > 1 else folder / "pytorch_lora_weights.safetensors"
