"""Small random pipelines of Wan."""

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)


def wan(*, experts: bool = False, expand_timesteps: bool = False, **more: Any) -> DiffusionPipeline:
    def transformer() -> WanTransformer3DModel:
        sizes: dict[str, Any] = {"in_channels": 16} | more
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
            **sizes,
        )

    return WanPipeline(
        tokenizer=ByT5Tokenizer(extra_ids=0),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        vae=AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer(),
        transformer_2=transformer() if experts else None,
        boundary_ratio=0.875 if experts else None,
        expand_timesteps=expand_timesteps,
    )


def wan_from_picture(*, experts: bool = False, expand_timesteps: bool = False, clip: bool = False) -> DiffusionPipeline:
    channels = 16 if expand_timesteps else 2 * 16 + 4  # of a state, of a clip, and a mask of each latent's frames
    sizes = {"image_dim": 16, "added_kv_proj_dim": 24} if clip else {}
    parts = wan(experts=experts, in_channels=channels, **sizes)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return WanImageToVideoPipeline(
        **parts.components,
        image_encoder=CLIPVisionModel(CLIPVisionConfig(**vision, image_size=16, patch_size=8)) if clip else None,
        image_processor=processor if clip else None,
        boundary_ratio=parts.config.boundary_ratio,
        expand_timesteps=expand_timesteps,
    )
