"""LoRA files for other tools: ComfyUI, kohya's sd-scripts and musubi-tuner.

Both take a layer's factor alpha / rank from a tensor `alpha` beside its weights, where diffusers keeps it in the file's
header. Without the tensor they take 1.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from peft import get_peft_model_state_dict

from ...proto.errors import InputError
from .pipeline import PipelinePolicy
from .start import LORA_STEM, lora_files, lora_of

FACTORS = {"lora_A": "lora_down", "lora_B": "lora_up"}
"""PEFT's names of a LoRA's two matrices, which go with paths in dots, and kohya's, which go with underscores."""
WAN_NAMES = {
    "blocks.": "blocks.",
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
HUNYUAN_NAMES = {
    "transformer_blocks.": "double_blocks.",
    ".attn.to_q": ".img_attn_q",
    ".attn.to_k": ".img_attn_k",
    ".attn.to_v": ".img_attn_v",
    ".attn.to_out.0": ".img_attn_proj",
    ".attn.add_q_proj": ".txt_attn_q",
    ".attn.add_k_proj": ".txt_attn_k",
    ".attn.add_v_proj": ".txt_attn_v",
    ".attn.to_add_out": ".txt_attn_proj",
    ".norm1.linear": ".img_mod.linear",
    ".norm1_context.linear": ".txt_mod.linear",
    ".ff.net.0.proj": ".img_mlp.fc1",
    ".ff.net.2": ".img_mlp.fc2",
    ".ff_context.net.0.proj": ".txt_mlp.fc1",
    ".ff_context.net.2": ".txt_mlp.fc2",
}
"""diffusers' names of the layers in a block of HunyuanVideo 1.5, and Tencent's own."""
HUNYUAN_REFINER_NAMES = {
    "context_embedder.token_refiner.refiner_blocks.": "txt_in.individual_token_refiner.blocks.",
    ".attn.to_q": ".self_attn_q",
    ".attn.to_k": ".self_attn_k",
    ".attn.to_v": ".self_attn_v",
    ".attn.to_out.0": ".self_attn_proj",
    ".ff.net.0.proj": ".mlp.fc1",
    ".ff.net.2": ".mlp.fc2",
    ".norm_out.linear": ".adaLN_modulation.1",
}
"""The same of the blocks that its prompts go through first."""
IN_BLOCKS: dict[str, tuple[dict[str, str], ...]] = {
    "WanTransformer3DModel": (WAN_NAMES,),
    "HunyuanVideo15Transformer3DModel": (HUNYUAN_NAMES, HUNYUAN_REFINER_NAMES),
    "LTX2VideoTransformer3DModel": ({"transformer_blocks.": "transformer_blocks."},),
    "QwenImageTransformer2DModel": ({"": ""},),
}
"""Networks whose layers go by their authors' names, for each kind of block. Its first name begins a path."""
UNKNOWN = {
    "comfyui": ("StableAudioDiTModel",),
    "kohya": ("StableAudioDiTModel", "LTX2VideoTransformer3DModel"),
}
"""Networks for whose layers a form has no names."""
FUSED = {"comfyui": ("self_attn_", "img_attn_", "txt_attn_"), "kohya": ("self_attn_",)}
"""Attention of HunyuanVideo 1.5 that has one layer for queries, keys and values."""
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
    networks = [network for part in policy.networks if (network := getattr(policy.pipeline, part, None))]
    files = [folder / f"{name}{file.removeprefix(LORA_STEM)}" for file in lora_files(len(networks))]
    for file, network in zip(files, networks, strict=True):
        save_as(network, file, form)
    return files


def save_as(network: Any, to: Path, form: Literal["comfyui", "kohya"]) -> None:
    """Write the LoRA of a network as another tool reads it. Raises InputError as `save_lora` does."""
    rank, alpha, _ = lora_of(network)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in get_peft_model_state_dict(network).items():
        path, factor = key.removesuffix(".weight").rsplit(".", 1)
        layers.setdefault(_layer_name(path, form, network), {})[factor] = value
    if type(network).__name__.startswith("HunyuanVideo"):
        layers = with_qkv_fused(layers, FUSED[form])
    weights = {}
    for layer, factors in layers.items():
        for factor, value in factors.items():
            weights[f"{layer}.{factor if '.' in layer else FACTORS[factor]}.weight"] = value.contiguous()
        weights[f"{layer}.alpha"] = torch.tensor(float(alpha * len(factors["lora_A"]) / rank))
    facts = {"format": "pt", "ss_network_module": "networks.lora"}
    safetensors.torch.save_file(weights, to, facts | {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)})


def _layer_name(path: str, form: Literal["comfyui", "kohya"], network: Any) -> str:
    """A layer's name in a file of a form, from its name in diffusers."""
    kind = type(network).__name__
    if kind == "UNet2DConditionModel":
        # kohya's tools train SD 1.5 by diffusers' names, and SDXL by Stability's. ComfyUI reads both.
        own = sdxl_name(path, network.config) if network.config.addition_embed_type == "text_time" else path
        return f"lora_unet_{own.replace('.', '_')}"
    if kind in UNKNOWN[form]:
        raise InputError(f"--format is '{form}', which has no names for the layers of a {kind}; use diffusers")
    if kind in IN_BLOCKS:
        own = own_name(path, IN_BLOCKS[kind])
        return f"lora_unet_{own.replace('.', '_')}" if form == "kohya" else f"diffusion_model.{own}"
    if form == "comfyui":
        return f"transformer.{path}"
    raise InputError(
        f"--format is 'kohya', whose tools fuse layers that a {kind} of diffusers keeps apart; use comfyui"
    )


def own_name(path: str, blocks: Iterable[Mapping[str, str]]) -> str:
    """A layer's name in the authors' own code. Raises InputError for a layer outside the blocks."""
    for names in blocks:
        if path.startswith(next(iter(names))):
            for theirs, own in names.items():
                path = path.replace(theirs, own)
            return path
    raise InputError(f"learner.lora.target_modules has '{path}', for which only --format diffusers has a name")


def with_qkv_fused(
    layers: Mapping[str, dict[str, torch.Tensor]], attention: Sequence[str]
) -> dict[str, dict[str, torch.Tensor]]:
    """The layers, where those for queries, keys and values of some `attention` have become one, whose LoRA has the sum
    of their ranks and changes each in rows of its own. Those that aren't trained have zeros."""
    fused: dict[str, dict[str, torch.Tensor]] = {}
    for layer, factors in layers.items():
        stem = layer[:-1]
        if not (layer.endswith(("_q", "_k", "_v")) and stem.endswith(tuple(attention))):
            fused[layer] = factors
        elif f"{stem}qkv" not in fused:
            absent = {"lora_A": factors["lora_A"][:0], "lora_B": factors["lora_B"][:, :0]}
            parts = [layers.get(f"{stem}{own}", absent) for own in "qkv"]
            fused[f"{stem}qkv"] = {
                "lora_A": torch.cat([part["lora_A"] for part in parts]),
                "lora_B": torch.block_diag(*(part["lora_B"] for part in parts)),
            }
    return fused


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
