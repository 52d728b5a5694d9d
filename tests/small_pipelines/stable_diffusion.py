"""Small random pipelines of Stable Diffusion."""

from typing import Any

from branchgrpo.rollout_workers.glyphs.pretrain import character_tokenizer
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from small_pipelines.parts import clip, vae
from transformers import ByT5Tokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""Noise levels of Stable Diffusion."""


def stable_diffusion(*, prediction: str) -> DiffusionPipeline:
    return StableDiffusionPipeline(
        unet=unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=16,
        ),
        scheduler=PNDMScheduler(
            **BETAS,
            skip_prk_steps=True,
            prediction_type=prediction,
        ),
        vae=vae(4, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(clip(16)),
        tokenizer=character_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(*, prediction: str, **statistics: Any) -> DiffusionPipeline:
    return StableDiffusionXLPipeline(
        unet=unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            cross_attention_dim=16 + 24,
        ),
        scheduler=EulerDiscreteScheduler(
            **BETAS,
            timestep_spacing="leading",
            prediction_type=prediction,
        ),
        vae=vae(4, scaling_factor=0.13025, force_upcast=True, **statistics),
        text_encoder=CLIPTextModel(clip(16)),
        tokenizer=character_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip(24)),  # in a single file they are told apart by their widths
        tokenizer_2=character_tokenizer(),
        add_watermarker=False,
    )


def stable_diffusion_3(*, t5: bool = True) -> DiffusionPipeline:
    config = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip(16)),
        tokenizer=character_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip(16)),
        tokenizer_2=character_tokenizer(),
        text_encoder_3=T5EncoderModel(config) if t5 else None,
        tokenizer_3=ByT5Tokenizer(extra_ids=0) if t5 else None,
    )


def unet(**more: Any) -> UNet2DConditionModel:
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DConditionModel(in_channels=4, out_channels=4, **sizes, **more)
