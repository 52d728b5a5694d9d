"""OpenCLIP's weights, as HPS v2.1 is published, for transformers' CLIPModel."""

from collections.abc import Mapping

import torch
from transformers import CLIPConfig

HEAD_WIDTHS = {"vision": 80, "text": 64}
"""Widths of the attention heads of OpenCLIP's ViT-H/14. All other sizes follow from the shapes of its weights."""

_TOWER = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_final": "final_layer_norm",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def converted(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's weights under the names of transformers' CLIPModel, float32."""
    found: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        own, tower = name.removeprefix("visual."), "vision_model" if name.startswith("visual.") else "text_model"
        value = value.float()
        if name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if "visual" in name else "text_projection.weight"] = value.T.contiguous()
        elif name == "logit_scale":
            found[name] = value
        elif own.startswith("transformer.resblocks."):
            number, part = own.removeprefix("transformer.resblocks.").split(".", 1)
            layer = f"{tower}.encoder.layers.{number}"
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
            else:
                module, kind = part.rsplit(".", 1)
                found[f"{layer}.{_BLOCK[module]}.{kind}"] = value
        elif own in _TOWER:
            found[f"{tower}.{_TOWER[own]}"] = value
        elif own.rpartition(".")[0] in _TOWER:
            module, _, kind = own.rpartition(".")
            found[f"{tower}.{_TOWER[module]}.{kind}"] = value
        # What is left, such as the attention mask, is no weight.
    return found


def clip_config(weights: Mapping[str, torch.Tensor]) -> CLIPConfig:
    """The shape of an OpenCLIP model whose weights are `converted`."""
    towers = {}
    for name, width in HEAD_WIDTHS.items():
        hidden = weights[f"{name}_model.encoder.layers.0.layer_norm1.weight"].shape[0]
        towers[name] = {
            "hidden_size": hidden,
            "intermediate_size": weights[f"{name}_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": 1 + max(int(n.split(".")[3]) for n in weights if n.startswith(f"{name}_model.enc")),
            "num_attention_heads": max(1, hidden // width),
            "hidden_act": "gelu",
        }
    patch = weights["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    patches = weights["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    vocabulary = weights["text_model.embeddings.token_embedding.weight"].shape[0]
    return CLIPConfig(
        text_config={
            **towers["text"],
            "vocab_size": vocabulary,
            "max_position_embeddings": weights["text_model.embeddings.position_embedding.weight"].shape[0],
            "eos_token_id": vocabulary - 1,
            "bos_token_id": vocabulary - 2,
        },
        vision_config={**towers["vision"], "patch_size": patch, "image_size": round(patches**0.5) * patch},
        projection_dim=weights["text_projection.weight"].shape[0],
    )
