"""Small random pipelines of LTX-2, 2.3 and 2.5: clips of 24 frames per second, sounds of 1600 or 3200 samples."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from transformers import (
    ByT5Tokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
)

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VOICE: dict[str, Any] = {"hidden_channels": 8, "upsample_kernel_sizes": [8, 8], "upsample_factors": [4, 4]}
VOICE |= {"resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]]}
SIZES_4: dict[str, Any] = SIZES | {"layer_types": ["sliding_attention", "full_attention"]}
SIZES_4 |= {"vocab_size": 400, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8}


def ltx2_from_picture(from_text: DiffusionPipeline) -> DiffusionPipeline:
    return LTX2ImageToVideoPipeline(**from_text.components)


def ltx23() -> DiffusionPipeline:
    """LTX-2.3: gates, modulated prompts, projections of prompts by modality, and a finer sound."""
    return ltx2(
        connectors={
            "per_modality_projections": True,
            "video_hidden_dim": 16,
            "audio_hidden_dim": 8,
            "audio_connector_attention_head_dim": 4,
            "video_gated_attn": True,
            "audio_gated_attn": True,
            "rope_type": "split",
            "proj_bias": True,
        },
        transformer={
            "gated_attn": True,
            "audio_gated_attn": True,
            "cross_attn_mod": True,
            "audio_cross_attn_mod": True,
            "rope_type": "split",
            "use_prompt_embeddings": False,
            "perturbed_attn": True,
        },
        vocoder=LTX2VocoderWithBWE(
            in_channels=32,
            bwe_in_channels=16,
            filter_length=16,
            hop_length=8,
            window_length=16,
            num_mel_channels=8,
            input_sampling_rate=1600,
            output_sampling_rate=3200,
            **VOICE,
            **{f"bwe_{name}": value for name, value in VOICE.items()},
        ),
    )


def ltx25() -> DiffusionPipeline:
    """LTX-2.5: as 2.3, with another encoder of prompts and a weight that only keyframes use."""
    pipeline = ltx23()
    config = dict(pipeline.transformer.config) | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
    pipeline.transformer = LTX2VideoTransformer3DModel.from_config(config)
    pipeline.text_encoder = Gemma4UnifiedForConditionalGeneration(
        Gemma4UnifiedConfig(
            text_config=SIZES_4,
            vision_config={"mm_embed_dim": 16, "output_proj_dims": 16, "mm_posemb_size": 4, "patch_size": 2},
            audio_config={"audio_embed_dim": 16},
        )
    )
    return pipeline


def ltx2(
    connectors: dict[str, Any] | None = None, transformer: dict[str, Any] | None = None, vocoder: Any = None
) -> DiffusionPipeline:
    pipeline = LTX2Pipeline(
        tokenizer=ByT5Tokenizer(extra_ids=0),
        text_encoder=Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config={**SIZES, "vocab_size": 400, "num_key_value_heads": 2, "head_dim": 8},
                vision_config={**SIZES, "image_size": 16, "patch_size": 8},
                mm_tokens_per_image=4,
            )
        ),
        connectors=LTX2TextConnectors(
            caption_channels=16,
            text_proj_in_factor=3,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=8,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=4,
            audio_connector_num_attention_heads=2,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=4,
            **{"audio_connector_attention_head_dim": 8} | (connectors or {}),
        ),
        vae=AutoencoderKLLTX2Video(
            latent_channels=8,
            block_out_channels=(8,),
            down_block_types=("LTX2VideoDownBlock3D",),
            decoder_block_out_channels=(8,),
            layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatiotemporal",),
            upsample_type=("spatiotemporal",),
            upsample_residual=(True,),
            upsample_factor=(1,),
        ),
        audio_vae=AutoencoderKLLTX2Audio(
            base_channels=8,
            num_res_blocks=1,
            resolution=16,
            latent_channels=2,
            sample_rate=1600,
            mel_hop_length=16,
            mel_bins=16,
        ),
        vocoder=vocoder or LTX2Vocoder(in_channels=32, output_sampling_rate=1600, **VOICE),
        transformer=LTX2VideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            vae_scale_factors=(2, 8, 8),
            audio_in_channels=8,
            audio_out_channels=8,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            audio_sampling_rate=1600,
            audio_hop_length=16,
            num_layers=2,
            caption_channels=16,
            **(transformer or {}),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            shift_terminal=0.1,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
        ),
    )
    for autoencoder in (pipeline.vae, pipeline.audio_vae):
        torch.nn.init.normal_(autoencoder.latents_mean, std=0.3)
        torch.nn.init.uniform_(autoencoder.latents_std, 0.5, 2)
    return pipeline
