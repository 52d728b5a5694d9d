"""LoRA files for other tools: ComfyUI, kohya's sd-scripts and musubi-tuner.

Both take a layer's factor alpha / rank from a tensor `alpha` beside its weights, where diffusers keeps it in the file's
header. Without the tensor they take 1.
"""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import safetensors.torch
import torch

from ...proto.errors import InputError
from .folder import opened
from .pipeline import PipelinePolicy
from .start import LORA_STEM, lora_files

FACTORS = {"lora_A": "lora_down", "lora_B": "lora_up"}
"""PEFT's names of a LoRA's two matrices, which go with paths in dots, and kohya's, which go with underscores."""
WAN_NAMES = {
    ".attn1.": ".self_attn.",
    ".attn2.": ".cross_attn.",
    ".to_q": ".q",
    ".to_k": ".k",
    ".to_v": ".v",
    ".to_out.0": ".o",
    ".add_k_proj": ".k_img",
    ".add_v_proj": ".v_img",
    ".ffn.net.0.proj": ".ffn.0",
    ".ffn.net.2": ".ffn.2",
}
"""diffusers' names of the layers in a block of Wan, and Wan's own."""
SDXL_RESNET_NAMES = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""diffusers' names of the layers in a residual block of SDXL, and Stability's."""


def save_lora(policy: PipelinePolicy, folder: Path, form: Literal["comfyui", "kohya"], name: str) -> list[Path]:
    """Write the LoRA of a policy into files of `folder` that begin with `name`, one for each network; returns them.

    Raises InputError for an architecture or a layer for which the form has no name.
    """
    with TemporaryDirectory(dir=folder) as diffusers_form:
        policy.save(Path(diffusers_form))
        networks = [network for part in policy.networks if (network := getattr(policy.pipeline, part, None))]
        written = []
        for file, network in zip(lora_files(len(networks)), networks, strict=True):
            written.append(folder / f"{name}{file.removeprefix(LORA_STEM)}")
            convert(Path(diffusers_form) / file, written[-1], form, network)
    return written


def convert(file: Path, to: Path, form: Literal["comfyui", "kohya"], network: Any) -> None:
    """Write a LoRA of `network` that diffusers wrote into `file` as another tool reads it, into `to`.

    Raises InputError as `save_lora` does.
    """
    with opened(file) as stored:
        header = json.loads(stored.metadata()["lora_adapter_metadata"])
    rank, alpha = (next(value for key, value in header.items() if key.endswith(end)) for end in (".r", ".lora_alpha"))
    weights = {}
    for key, value in safetensors.torch.load_file(file).items():
        path, factor = key.split(".", 1)[1].removesuffix(".weight").rsplit(".", 1)
        layer = _layer_name(path, form, network)
        weights[f"{layer}.{factor if '.' in layer else FACTORS[factor]}.weight"] = value
        weights[f"{layer}.alpha"] = torch.tensor(float(alpha))
    facts = {"format": "pt", "ss_network_module": "networks.lora"}
    safetensors.torch.save_file(weights, to, facts | {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)})


def _layer_name(path: str, form: Literal["comfyui", "kohya"], network: Any) -> str:
    """A layer's name in a file of a form, from its name in diffusers."""
    kind = type(network).__name__
    if kind == "UNet2DConditionModel":
        # kohya's tools train SD 1.5 by diffusers' names, and SDXL by Stability's. ComfyUI reads both.
        own = sdxl_name(path, network.config) if network.config.addition_embed_type == "text_time" else path
        return f"lora_unet_{own.replace('.', '_')}"
    if kind in ("WanTransformer3DModel", "QwenImageTransformer2DModel"):
        own = wan_name(path) if kind.startswith("Wan") else path
        return f"lora_unet_{own.replace('.', '_')}" if form == "kohya" else f"diffusion_model.{own}"
    if form == "comfyui":
        return f"transformer.{path}"
    raise InputError(
        f"--format is 'kohya', whose tools fuse layers that a {kind} of diffusers keeps apart; use comfyui"
    )


def wan_name(path: str) -> str:
    """A layer's name in Wan's own code. Raises InputError for a layer outside the blocks."""
    if not path.startswith("blocks."):
        raise InputError(f"learner.lora.target_modules has '{path}', for which only --format diffusers has a name")
    for theirs, own in WAN_NAMES.items():
        path = path.replace(theirs, own)
    return path


def sdxl_name(path: str, config: Any) -> str:
    """A layer's name in Stability's code for SDXL, which numbers the blocks of the UNet through.

    Raises InputError for a layer outside the blocks.
    """
    stage = config.layers_per_block + 1
    mid = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path)
    block = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", path)
    if mid:
        kind, index, rest = mid[1], int(mid[2]), mid[3]
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{_in_block(kind, rest)}"
    if block is None:
        raise InputError(f"learner.lora.target_modules has '{path}', for which only --format diffusers has a name")
    way, number, kind, index, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
    if kind == "downsamplers":
        return f"input_blocks.{stage * (number + 1)}.0.op"
    if kind == "upsamplers":
        attends = "CrossAttn" in config.up_block_types[number]
        return f"output_blocks.{stage * number + stage - 1}.{2 if attends else 1}.conv"
    place = f"input_blocks.{stage * number + index + 1}" if way == "down" else f"output_blocks.{stage * number + index}"
    return f"{place}.{int(kind == 'attentions')}.{_in_block(kind, rest)}"


def _in_block(kind: str, rest: str) -> str:
    return SDXL_RESNET_NAMES[rest] if kind == "resnets" else rest
