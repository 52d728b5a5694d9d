"""Small random pipelines of Qwen-Image and its edits."""

from typing import Any

from branchgrpo.rollout_workers.policies import qwen_image_21 as policy_21
from branchgrpo.rollout_workers.policies.qwen_image_edit import PictureProcessor
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from small_pipelines.parts import QWEN_PARTS_CHAT, VISION, qwen_tokenizer
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

edit_plus.CONDITION_IMAGE_SIZE, edit_plus.VAE_IMAGE_SIZE = 32 * 64, 32 * 64  # a megapixel would take its time
policy_21.READ_SIDE = 45
edit.calculate_dimensions = lambda area, ratio: (*edit_plus.calculate_dimensions(edit_plus.VAE_IMAGE_SIZE, ratio), None)

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SIGHT = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
LEVELS = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}


def qwen_image() -> DiffusionPipeline:
    tokenizer = qwen_tokenizer()
    start, _, image, video = tokenizer.convert_tokens_to_ids(VISION)
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_start_token_id=start,
            image_token_id=image,
            video_token_id=video,
            text_config={
                **TEXT,
                "vocab_size": len(tokenizer),
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            },
            vision_config=SIGHT,
        )
    )
    return QwenImagePipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=AutoencoderKLQwenImage(
            base_dim=6,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.0, 0.3],
            latents_std=[1.0, 2.0, 1.5, 0.5],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, **LEVELS),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
    )


def qwen_image_21(**more: Any) -> DiffusionPipeline:
    tokenizer = qwen_tokenizer()
    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION)
    encoder = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            vision_start_token_id=start,
            vision_end_token_id=end,
            image_token_id=image,
            video_token_id=video,
            text_config={
                "vocab_size": len(tokenizer),
                **TEXT,
                "head_dim": 8,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]},
            },
            vision_config={**SIGHT, "deepstack_visual_indexes": [0]},
        )
    )
    pictures = Qwen2VLImageProcessor(patch_size=16, min_pixels=32**2, max_pixels=4096**2)
    processor = policy_21.PictureProcessor(pictures, tokenizer, chat_template=QWEN_PARTS_CHAT)
    return QwenImage21Pipeline(
        processor=processor,
        text_encoder=encoder,
        vae=AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=6,
            z_dim=8,
            dim_mult=[1, 1, 1, 2, 2],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.0, 0.3, 0.1, -0.2, 0.0, 0.3],
            latents_std=[1.0, 2.0, 1.5, 0.5, 1.0, 2.0, 1.5, 0.5],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, **LEVELS),
        transformer=QwenImage21Transformer2DModel(
            in_channels=8,
            out_channels=8,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        **more,
    )


def qwen_image_edit() -> DiffusionPipeline:
    return QwenImageEditPipeline(**qwen_image_edit_plus().components)


def qwen_image_edit_plus() -> DiffusionPipeline:
    parts = qwen_image().components
    processor = PictureProcessor(Qwen2VLImageProcessor(min_pixels=28**2, max_pixels=56**2), parts["tokenizer"])
    return QwenImageEditPlusPipeline(**parts, processor=processor)
