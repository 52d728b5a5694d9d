"""Small random pipelines of HunyuanVideo 1.5."""

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.models.transformers import transformer_hunyuan_video15
from small_pipelines.parts import qwen_tokenizer
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

CHAT = (
    "<|im_start|>system\n{{ messages[0].content[:61] }}<|im_end|>\n<|im_start|>user\n{{ messages[1].content }}"
    "<|im_end|>\n<|im_start|>assistant\n"
)
"""Its first 108 tokens are left out. Where a token is a character, what the system says would take more."""


class Projection(transformer_hunyuan_video15.HunyuanVideo15ByT5TextProjection):
    """No wider than the network, as the published ones are. diffusers gives small networks a width of 2048 too."""

    def __init__(self, in_features: int, hidden_size: int, out_features: int):
        super().__init__(in_features, min(hidden_size, out_features), out_features)


transformer_hunyuan_video15.HunyuanVideo15ByT5TextProjection = Projection


def hunyuan_video(*, task: str = "t2v", meanflow: bool = False) -> DiffusionPipeline:
    tokenizer = qwen_tokenizer(chat=CHAT)
    return HunyuanVideo15Pipeline(
        tokenizer=tokenizer,
        text_encoder=Qwen2_5_VLTextModel(
            Qwen2_5_VLTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=2,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            )
        ),
        tokenizer_2=ByT5Tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=400, d_model=12, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=HunyuanVideo15Transformer3DModel(
            in_channels=2 * 4 + 1,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_refiner_layers=1,
            mlp_ratio=1.0,
            text_embed_dim=16,
            text_embed_2_dim=12,
            image_embed_dim=16,
            rope_axes_dim=(4, 4, 4),
            target_size=23,
            task_type=task,
            use_meanflow=meanflow,
        ),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


def hunyuan_video_from_picture() -> DiffusionPipeline:
    vision: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return HunyuanVideo15ImageToVideoPipeline(
        **hunyuan_video(task="i2v").components,
        image_encoder=SiglipVisionModel(
            SiglipVisionConfig(**vision, num_attention_heads=2, image_size=16, patch_size=8)
        ),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )
