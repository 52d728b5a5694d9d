"""Folders of models as they are published, without weights: the sizes of their parts, with small tokenizers."""

import inspect
import json
from pathlib import Path
from typing import Any

from families import FAMILIES, PROCESSORS

T5 = {"model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24}
T5 |= {"num_heads": 64, "feed_forward_proj": "gated-gelu"}
T5_BASE = {"model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12}
T5_BASE |= {"num_heads": 12}
UMT5 = T5 | {"model_type": "umt5", "vocab_size": 256384}
CLIP_L: dict[str, Any] = {"model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072}
CLIP_L |= {"num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
CLIP_G = CLIP_L | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
CLIP_G |= {"num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu"}
QWEN3: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728}
QWEN3 |= {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
QWEN_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 5,
    "text_config": {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
QWEN3_VL: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "image_token_id": 5,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    },
    "vision_config": {"model_type": "qwen3_vl_vision", "out_hidden_size": 4096},
}
BYT5 = {"model_type": "t5", "vocab_size": 1510, "d_model": 1472, "d_kv": 64, "d_ff": 3584, "num_layers": 12}
BYT5 |= {"num_heads": 6, "feed_forward_proj": "gated-gelu"}
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "vocab_size": 262208,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    },
}
SIGLIP: dict[str, Any] = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304}
SIGLIP |= {"num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14}
MISTRAL: dict[str, Any] = {
    "model_type": "mistral3",
    "text_config": {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}
VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16}
VAE |= {
    name: (f"{kind}Block2D",) * 4
    for name, kind in (("down_block_types", "DownEncoder"), ("up_block_types", "UpDecoder"))
}
FLUX_VAE = VAE | {
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
WAN_22_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
WAN_14B = {"num_attention_heads": 40, "in_channels": 36, "out_channels": 16, "ffn_dim": 13824, "num_layers": 40}
UNET: dict[str, Any] = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
UNET_XL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM: dict[str, Any] = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_unified",
    "text_config": GEMMA3["text_config"]
    | {
        "model_type": "gemma4_unified_text",
        "vocab_size": 262144,
        "global_head_dim": 512,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
    },
    "vision_config": {"model_type": "gemma4_unified_vision"},
    "audio_config": {"model_type": "gemma4_unified_audio"},
}
LTX25: dict[str, Any] = {"gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True}
LTX25 |= {"audio_cross_attn_mod": True, "rope_type": "split", "use_prompt_embeddings": False, "perturbed_attn": True}
LTX25 |= {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
LTX25_CONNECTORS: dict[str, Any] = {
    "video_connector_num_attention_heads": 32,
    "video_connector_num_layers": 8,
    "video_gated_attn": True,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "audio_connector_num_layers": 8,
    "audio_gated_attn": True,
    "rope_type": "split",
    "per_modality_projections": True,
    "proj_bias": True,
}
LTX25_VAE = {
    "block_out_channels": (256, 512, 1024, 1024),
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "layers_per_block": (4, 6, 4, 2, 2),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_spatial_padding_mode": "zeros",
}
SECONDS = {"text_encoder_dim": 768, "conditioning_dim": 768, "min_value": 0, "max_value": 512}
KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
FLUX = {"transformer": {"guidance_embeds": True}, "vae": FLUX_VAE, "text_encoder": CLIP_L, "text_encoder_2": T5}

MODELS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "Chroma1-HD": ("Chroma", {"transformer": {}, "vae": FLUX_VAE, "text_encoder": T5}),
    "FLUX.1-dev": ("FLUX.1-dev", FLUX),
    "FLUX.1-Kontext-dev": ("FLUX.1 Kontext", FLUX),
    "FLUX.2-dev": ("FLUX.2 dev", {"transformer": {}, "vae": {}, "text_encoder": MISTRAL}),
    "FLUX.2-klein-base-4B": (
        "FLUX.2 klein",
        {"transformer": KLEIN | {"guidance_embeds": False}, "vae": {}, "text_encoder": QWEN3},
    ),
    "HunyuanVideo-1.5-Diffusers-480p_t2v": (
        "HunyuanVideo 1.5",
        {"transformer": {}, "vae": {}, "text_encoder": QWEN_VL["text_config"], "text_encoder_2": BYT5},
    ),
    "HunyuanVideo-1.5-Diffusers-480p_i2v": (
        "HunyuanVideo 1.5, picture",
        {
            "transformer": {"task_type": "i2v"},
            "vae": {},
            "text_encoder": QWEN_VL["text_config"],
            "text_encoder_2": BYT5,
            "image_encoder": SIGLIP,
        },
    ),
    "LTX-2": (
        "LTX-2",
        {"transformer": {}, "vae": {}, "audio_vae": {}, "vocoder": {}, "connectors": {}, "text_encoder": GEMMA3},
    ),
    "LTX-2.5-Diffusers": (
        "LTX-2.5",
        {
            "transformer": LTX25,
            "vae": LTX25_VAE,
            "audio_vae": {},
            "vocoder": {},
            "connectors": LTX25_CONNECTORS,
            "text_encoder": GEMMA4,
        },
    ),
    "Qwen-Image": ("Qwen-Image", {"transformer": {}, "vae": {}, "text_encoder": QWEN_VL}),
    "Qwen-Image-2.1": ("Qwen-Image 2.1", {"transformer": {}, "vae": {}, "text_encoder": QWEN3_VL}),
    "Qwen-Image-Edit-2511": ("Qwen-Image-Edit Plus", {"transformer": {}, "vae": {}, "text_encoder": QWEN_VL}),
    "stable-audio-open-1.0": (
        "Stable Audio",
        {"transformer": {}, "vae": {}, "text_encoder": T5_BASE, "projection_model": SECONDS},
    ),
    "stable-diffusion-3.5-medium": (
        "SD3.5",
        {
            "transformer": SD35_MEDIUM,
            "vae": FLUX_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_G,
            "text_encoder_3": T5,
        },
    ),
    "stable-diffusion-v1-5": ("SD1.5", {"unet": UNET, "vae": VAE | {"latent_channels": 4}, "text_encoder": CLIP_L}),
    "stable-diffusion-xl-base-1.0": (
        "SDXL",
        {"unet": UNET_XL, "vae": VAE | {"latent_channels": 4}, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    ),
    "Wan2.1-T2V-1.3B-Diffusers": (
        "Wan 2.1",
        {
            "transformer": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            "vae": {},
            "text_encoder": UMT5,
        },
    ),
    "Wan2.2-I2V-A14B-Diffusers": (
        "Wan 2.2 14B, picture",
        {"transformer": WAN_14B, "transformer_2": WAN_14B, "vae": {}, "text_encoder": UMT5},
    ),
    "Wan2.2-TI2V-5B-Diffusers": (
        "Wan 2.2 5B",
        {
            "transformer": {
                "num_attention_heads": 24,
                "in_channels": 48,
                "out_channels": 48,
                "ffn_dim": 14336,
                "num_layers": 30,
            },
            "vae": WAN_22_VAE,
            "text_encoder": UMT5,
        },
    ),
    "Z-Image-Turbo": ("Z-Image", {"transformer": {}, "vae": FLUX_VAE, "text_encoder": QWEN3}),
}
"""Name of a model's folder in the recipes -> its family, and what of its parts differs from their classes' defaults
(those of the first model, often)."""


def without_weights(name: str, folder: Path) -> Path:
    """The model's folder, without weights."""
    family, parts = MODELS[name]
    pipeline = FAMILIES[family].build()
    classes = {part: type(getattr(pipeline, part)) for part in parts}
    for part in parts:
        pipeline.register_modules(**{part: None})
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text()) | PROCESSORS.get(type(pipeline).__name__, {})
    for part, config in parts.items():
        library = "transformers" if "model_type" in config else "diffusers"
        index[part] = [library, classes[part].__name__]
        if library == "diffusers":  # in whose files all is written out
            arguments = inspect.signature(classes[part]).parameters.values()
            config = {own.name: own.default for own in arguments if own.default is not own.empty} | config
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
