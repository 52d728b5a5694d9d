"""Small random pipelines of FLUX.1 and FLUX.2."""

from typing import Any

from branchgrpo.rollout_workers.glyphs.pretrain import new_pipeline
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from small_pipelines.parts import MISTRAL_CHAT, qwen3, qwen_tokenizer
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Qwen3ForCausalLM


def flux(*, dev: bool) -> DiffusionPipeline:
    pipeline = new_pipeline()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        guidance_embeds=dev,
        axes_dims_rope=(2, 2, 4),
    )
    shift = {"use_dynamic_shifting": True, "shift": 3.0} if dev else {"shift": 1.0}
    pipeline.vae.register_to_config(scaling_factor=0.36, shift_factor=0.12)
    pipeline.register_modules(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**shift))
    return pipeline


def flux_kontext() -> DiffusionPipeline:
    return FluxKontextPipeline(**flux(dev=True).components)


def flux2_dev() -> DiffusionPipeline:
    tokenizer = qwen_tokenizer(chat=MISTRAL_CHAT)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    encoder = Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config={
                **sizes,
                "model_type": "mistral",
                "vocab_size": len(tokenizer),
                "num_hidden_layers": 30,  # of which the 10th, 20th and 30th are read
                "num_key_value_heads": 2,
            },
            vision_config={**sizes, "model_type": "pixtral", "num_hidden_layers": 1, "patch_size": 14},
        )
    )
    return Flux2Pipeline(text_encoder=encoder, tokenizer=tokenizer, **flux2(halvings=3, dev=True))


def flux2_klein(*, halvings: int = 1) -> DiffusionPipeline:
    tokenizer = qwen_tokenizer()
    encoder = Qwen3ForCausalLM(qwen3(tokenizer, layers=28))  # of which the 9th, 18th and 27th are read
    return Flux2KleinPipeline(text_encoder=encoder, tokenizer=tokenizer, **flux2(halvings=halvings, dev=False))


def flux2(*, halvings: int, dev: bool) -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
            up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
            block_out_channels=(8, *(16,) * halvings),
            latent_channels=4,
            norm_num_groups=4,
        ),
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=dev,
        ),
    }
