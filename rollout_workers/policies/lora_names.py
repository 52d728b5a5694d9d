"""Names of layers in the code of a model's authors, by which ComfyUI and kohya's tools know them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ...proto.errors import InputError

Form = Literal["comfyui", "kohya"]


class Blocks(NamedTuple):
    """Numbered blocks of one kind."""

    begin: str
    """How their paths begin in diffusers, before the number."""
    own: str
    """How they begin in the authors' code."""
    layers: Mapping[str, str] = {}
    """diffusers' names of the layers, and the authors'. Several with spaces between them are one layer there, whose
    rows are theirs. Without any, all names are the same."""


WAN = Blocks(
    "blocks.",
    "blocks.",
    {
        "attn1.to_q": "self_attn.q",
        "attn1.to_k": "self_attn.k",
        "attn1.to_v": "self_attn.v",
        "attn1.to_out.0": "self_attn.o",
        "attn2.to_q": "cross_attn.q",
        "attn2.to_k": "cross_attn.k",
        "attn2.to_v": "cross_attn.v",
        "attn2.to_out.0": "cross_attn.o",
        "attn2.add_k_proj": "cross_attn.k_img",
        "attn2.add_v_proj": "cross_attn.v_img",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
    },
)
HUNYUAN_APART = {
    "attn.to_q": "img_attn_q",
    "attn.to_k": "img_attn_k",
    "attn.to_v": "img_attn_v",
    "attn.add_q_proj": "txt_attn_q",
    "attn.add_k_proj": "txt_attn_k",
    "attn.add_v_proj": "txt_attn_v",
}
"""Queries, keys and values in Tencent's code for HunyuanVideo 1.5, and in ComfyUI's."""
HUNYUAN_FUSED = {
    "attn.to_q attn.to_k attn.to_v": "img_attn_qkv",
    "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "txt_attn_qkv",
}
HUNYUAN = {
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "norm1.linear": "img_mod.linear",
    "norm1_context.linear": "txt_mod.linear",
    "ff.net.0.proj": "img_mlp.fc1",
    "ff.net.2": "img_mlp.fc2",
    "ff_context.net.0.proj": "txt_mlp.fc1",
    "ff_context.net.2": "txt_mlp.fc2",
}
HUNYUAN_REFINER = Blocks(
    "context_embedder.token_refiner.refiner_blocks.",
    "txt_in.individual_token_refiner.blocks.",
    {
        "attn.to_q attn.to_k attn.to_v": "self_attn_qkv",
        "attn.to_out.0": "self_attn_proj",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
        "norm_out.linear": "adaLN_modulation.1",
    },
)
"""Blocks that its prompts go through first."""
FLUX_ATTENTION = {
    "attn.to_q attn.to_k attn.to_v": "img_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "txt_attn.qkv",
    "attn.to_add_out": "txt_attn.proj",
}
FLUX = (
    Blocks(
        "transformer_blocks.",
        "double_blocks.",
        {
            **FLUX_ATTENTION,
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
            "ff.net.0.proj": "img_mlp.0",
            "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0",
            "ff_context.net.2": "txt_mlp.2",
        },
    ),
    Blocks(
        "single_transformer_blocks.",
        "single_blocks.",
        {
            "attn.to_q attn.to_k attn.to_v proj_mlp": "linear1",
            "proj_out": "linear2",
            "norm.linear": "modulation.lin",
        },
    ),
)
FLUX2 = (
    Blocks(
        "transformer_blocks.",
        "double_blocks.",
        {
            **FLUX_ATTENTION,
            "ff.linear_in": "img_mlp.0",
            "ff.linear_out": "img_mlp.2",
            "ff_context.linear_in": "txt_mlp.0",
            "ff_context.linear_out": "txt_mlp.2",
        },
    ),
    Blocks(
        "single_transformer_blocks.", "single_blocks.", {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
    ),
)
SD3 = Blocks(
    "transformer_blocks.",
    "joint_blocks.",
    {
        "attn.to_q attn.to_k attn.to_v": "x_block.attn.qkv",
        "attn.to_out.0": "x_block.attn.proj",
        "attn2.to_q attn2.to_k attn2.to_v": "x_block.attn2.qkv",
        "attn2.to_out.0": "x_block.attn2.proj",
        "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "context_block.attn.qkv",
        "attn.to_add_out": "context_block.attn.proj",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    },
)
"""Without `norm1_context.linear`, of whose last one diffusers has the rows in another order."""
OWN_NAMES: dict[Form, dict[str, Sequence[Blocks]]] = {
    "comfyui": {
        "WanTransformer3DModel": [WAN],
        "HunyuanVideo15Transformer3DModel": [
            Blocks("transformer_blocks.", "double_blocks.", HUNYUAN_FUSED | HUNYUAN),
            HUNYUAN_REFINER,
        ],
        "LTX2VideoTransformer3DModel": [Blocks("transformer_blocks.", "transformer_blocks.")],
        "QwenImageTransformer2DModel": [Blocks("", "")],
    },
    "kohya": {
        "WanTransformer3DModel": [WAN],
        "HunyuanVideo15Transformer3DModel": [
            Blocks("transformer_blocks.", "double_blocks.", HUNYUAN_APART | HUNYUAN),
            HUNYUAN_REFINER,
        ],
        "QwenImageTransformer2DModel": [Blocks("", "")],
        "ZImageTransformer2DModel": [Blocks(name, name) for name in ("layers.", "noise_refiner.", "context_refiner.")],
        "FluxTransformer2DModel": FLUX,
        "ChromaTransformer2DModel": FLUX,
        "Flux2Transformer2DModel": FLUX2,
        "SD3Transformer2DModel": [SD3],
    },
}
"""The kinds of blocks in a network whose layers a form knows by the authors' names."""
NAMED_AS_IN_DIFFUSERS = (
    *("ChromaTransformer2DModel", "Flux2Transformer2DModel", "FluxTransformer2DModel", "SD3Transformer2DModel"),
    "ZImageTransformer2DModel",
)
"""Networks whose layers ComfyUI knows by diffusers' paths."""
SDXL_RESNET_NAMES = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""diffusers' names of the layers in a residual block of SDXL, and Stability's."""


def own_name(path: str, blocks: Sequence[Blocks]) -> tuple[str, list[str]]:
    """A layer's name in the authors' own code, and the paths in diffusers of all layers that it is made of.

    Raises InputError for a layer without a name.
    """
    for begin, own, layers in blocks:
        if path.startswith(begin):
            if not layers:
                return path, [path]
            number, _, layer = path.removeprefix(begin).partition(".")
            for parts, name in layers.items():
                if layer in parts.split():
                    return f"{own}{number}.{name}", [f"{begin}{number}.{part}" for part in parts.split()]
    raise InputError(f"learner.lora.target_modules has '{path}', for which only --format diffusers has a name")


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
