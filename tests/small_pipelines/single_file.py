"""Small models as single files: Stable Diffusion 1.5 and XL whole, with Stability's own names of weights, and networks
of others by their published names."""

import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

IN_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OF_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UPSAMPLER = "up_blocks.0.upsamplers.0.conv"
"""Numbered after the attention of its block, which Stable Diffusion 1.5 has none of there."""
OF_OPEN_CLIP = {
    "text_model.": "",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
OF_VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}

OF_Z_IMAGE = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    "attention.norm_q.": "attention.q_norm.",
    "attention.norm_k.": "attention.k_norm.",
    "attention.to_out.0.": "attention.out.",
}
OF_WAN = {
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    ".attn1": ".self_attn",
    ".attn2": ".cross_attn",
    ".norm2": ".norm3",
    ".to_q": ".q",
    ".to_k": ".k",
    ".to_v": ".v",
    ".to_out.0": ".o",
    ".ffn.net.0.proj": ".ffn.0",
    ".ffn.net.2": ".ffn.2",
    "proj_out.": "head.head.",
}


def published_z_image(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Z-Image's weights as its authors name them, with one layer for queries, keys and values."""
    named = {_replaced(name, OF_Z_IMAGE): value for name, value in weights.items()}
    for name in [name for name in named if ".to_q." in name]:
        parts = [named.pop(name.replace(".to_q.", f".to_{part}.")) for part in "qkv"]
        named[name.replace(".to_q.", ".qkv.")] = torch.cat(parts)
    return named


def published_wan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Wan's weights as its authors name them."""
    named = {_replaced(name, OF_WAN): value for name, value in weights.items()}
    whole = {"scale_shift_table": "head.modulation"}
    return {whole.get(name, name.replace(".scale_shift_table", ".modulation")): own for name, own in named.items()}


def published_qwen_image(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen-Image's weights, which its authors name as diffusers does."""
    return weights


def _replaced(name: str, table: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, table)), lambda found: table[found[0]], name)


def save_as_single_file(pipeline: Any, file: Path) -> Path:
    """Write UNet, autoencoder and text encoders of the small pipeline into one file."""
    second = getattr(pipeline, "text_encoder_2", None)
    unet = OF_UNET | {UPSAMPLER: f"output_blocks.1.{2 if second else 1}.conv"}
    weights = {f"model.diffusion_model.{_of_unet(name, unet)}": own for name, own in pipeline.unet.state_dict().items()}
    for name, value in pipeline.vae.state_dict().items():
        own = _of_vae(name)
        is_matrix = ".mid.attn_1." in own and value.dim() == 2  # there they are convolutions
        weights[f"first_stage_model.{own}"] = value[:, :, None, None] if is_matrix else value
    encoder = "conditioner.embedders.0" if second else "cond_stage_model"
    for name, value in pipeline.text_encoder.state_dict().items():
        weights[f"{encoder}.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    if second:
        weights |= {f"conditioner.embedders.1.model.{name}": own for name, own in _open_clip(second).items()}
    safetensors.torch.save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file


def _open_clip(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a CLIP by OpenCLIP's names, with one layer for queries, keys and values."""
    weights = {"logit_scale": torch.tensor(4.6)}
    for name, value in encoder.state_dict().items():
        own = re.sub("|".join(OF_OPEN_CLIP), lambda found: OF_OPEN_CLIP[found[0]], name)
        weights[own] = value.T if own == "text_projection" else value
    for name in [name for name in weights if ".q_proj." in name]:
        parts = [weights.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        weights[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)
    return weights


def _of_unet(name: str, table: dict[str, str]) -> str:
    if ".resnets." in name:
        name = re.sub("|".join(IN_RESNETS), lambda found: IN_RESNETS[found[0]], name)
    (begin,) = (own for own in table if name.startswith(f"{own}."))
    return table[begin] + name.removeprefix(begin)


def _of_vae(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda found: f"up.{1 - int(found[1])}.block.", name)
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{1 - int(found[1])}", name)
    for own, other in OF_VAE.items():
        name = name.replace(own, other)
    return name
