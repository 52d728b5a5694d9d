"""What FLUX.1-dev and a ViT-H/14 reward model weigh and compute, counted on the real architectures without weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import ByT5Tokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from ...cluster.plan.flops import count_work
from ...cluster.plan.shapes import policy_shapes
from ...proto.settings_errors import parse_settings
from ...rollout_workers.glyphs.pretrain import character_tokenizer
from ...rollout_workers.policies.base import trainable

PIXELS = 720
TOKENS, CHANNELS = (PIXELS // 16) ** 2, 64
"""Number and width of the packed latents' tokens."""
TEXT_TOKENS, TEXT_CHANNELS, POOLED_CHANNELS = 512, 4096, 768
VAE_BLOCKS = [128, 256, 512, 512]


@dataclass(frozen=True)
class Counted:
    """FLOPs of one row, picture or state; bytes of what is published."""

    forward_flops: float
    decode_flops: float
    score_flops: float
    parameters: int
    full_bytes: int
    lora_parameters: int
    lora_bytes: int


def count() -> Counted:
    """Counted on shapes without numbers."""
    with TemporaryDirectory() as folder:
        policy = {"pretrained": str(flux_dev(Path(folder))), "height": PIXELS, "width": PIXELS}
        content = {"name": "flux", "policy": policy, "prompts": {"train": "prompts.txt"}, "rewards": {"hps": {}}}
        settings = parse_settings(content)
        work, network = count_work(settings), policy_shapes(settings).network
        adapted = policy_shapes(parse_settings({**content, "learner": {"lora": {}}})).network
    whole, adapters = list(network.parameters()), trainable(adapted).values()
    return Counted(
        forward_flops=work.forward_row,
        decode_flops=work.decode_leaf,
        score_flops=work.score_leaf["hps"] or 0.0,
        parameters=sum(p.numel() for p in whole),
        full_bytes=sum(p.nbytes for p in whole),
        lora_parameters=sum(p.numel() for p in adapters),
        lora_bytes=sum(p.nbytes for p in adapters),
    )


def flux_dev(folder: Path) -> Path:
    """FLUX.1-dev's configurations as a pipeline's folder, without weights, and with tokenizers of single characters."""
    with torch.device("meta"):
        parts = flux_parts({}, VAE_BLOCKS, CLIP_L, T5_XXL)
    return write_pipeline(folder, parts, weights=False)


def flux_parts(network: Mapping[str, Any], vae_blocks: list[int], clip: CLIPTextConfig, t5: T5Config) -> dict[str, Any]:
    """The networks of a FLUX.1 pipeline by name, with random weights. `network` has what is other than FLUX.1-dev's in
    its transformer.
    """
    transformer = FluxTransformer2DModel(**{"guidance_embeds": True, **network})
    return {
        "transformer": transformer,
        "vae": flux_autoencoder(vae_blocks, transformer.config.in_channels // 4),
        "text_encoder": CLIPTextModel(clip),
        "text_encoder_2": T5EncoderModel(t5),
    }


def write_pipeline(folder: Path, parts: Mapping[str, Any], *, weights: bool) -> Path:
    """Write `flux_parts` as the folder of a FluxPipeline, with weights or only their configurations. Tokenizers have a
    token for a character.
    """
    for name, part in parts.items():
        if weights:
            part.save_pretrained(folder / name)
        elif name.startswith("text"):
            part.config.save_pretrained(folder / name)
        else:
            part.save_config(folder / name)
    others: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        "tokenizer": character_tokenizer(),
        "tokenizer_2": ByT5Tokenizer(extra_ids=0),
    }
    for name, part in others.items():
        part.save_pretrained(folder / name)
    every = {**parts, **others}
    index = {name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in every.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **index}))
    return folder


def clip_text(hidden_size: int, intermediate_size: int, num_attention_heads: int, layers: int) -> CLIPTextConfig:
    """A text tower of CLIP for `character_tokenizer`."""
    tokenizer = character_tokenizer()
    return CLIPTextConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=num_attention_heads,
        num_hidden_layers=layers,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


CLIP_L = clip_text(POOLED_CHANNELS, 3072, 12, 12)
T5_XXL = T5Config(
    d_model=TEXT_CHANNELS, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)
"""The text encoders of FLUX.1-dev."""


def flux_autoencoder(blocks: list[int], latent_channels: int) -> AutoencoderKL:
    """An autoencoder of the architecture of FLUX.1's, with random weights."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(blocks),
        up_block_types=["UpDecoderBlock2D"] * len(blocks),
        block_out_channels=blocks,
        layers_per_block=2,
        latent_channels=latent_channels,
        norm_num_groups=min(32, *blocks),
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
