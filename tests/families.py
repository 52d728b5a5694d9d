"""Small random pipelines of each family, of diffusers' own classes and in the published layout of folders."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from branchgrpo.proto.pictures import find_pictures
from branchgrpo.proto.prompts import Prompt
from branchgrpo.rollout_workers.glyphs.pretrain import character_tokenizer, new_pipeline
from branchgrpo.rollout_workers.policies.qwen_image_edit import PictureProcessor
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

edit_plus.CONDITION_IMAGE_SIZE, edit_plus.VAE_IMAGE_SIZE = 32 * 64, 32 * 64  # a megapixel would take its time

VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
"""Qwen's tokens for pictures and clips."""
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""Noise levels of Stable Diffusion."""


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
        vae=_vae(4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(_clip(16)),
        tokenizer=character_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip(16)),
        tokenizer_2=character_tokenizer(),
        text_encoder_3=T5EncoderModel(config) if t5 else None,
        tokenizer_3=ByT5Tokenizer(extra_ids=0) if t5 else None,
    )


def stable_diffusion(*, prediction: str) -> DiffusionPipeline:
    return StableDiffusionPipeline(
        unet=_unet(
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
        vae=_vae(4, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_clip(16)),
        tokenizer=character_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def wan(*, experts: bool = False, expand_timesteps: bool = False) -> DiffusionPipeline:
    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
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


def qwen_image() -> DiffusionPipeline:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_key_value_heads": 2, "num_attention_heads": 2}
    tokenizer = _qwen_tokenizer()
    start, _, image, video = tokenizer.convert_tokens_to_ids(VISION)
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_start_token_id=start,
            image_token_id=image,
            video_token_id=video,
            text_config={
                **sizes,
                "vocab_size": len(tokenizer),
                "num_hidden_layers": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
            },
        )
    )
    levels = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
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
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, **levels),
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


def qwen_image_edit() -> DiffusionPipeline:
    parts = qwen_image().components
    processor = PictureProcessor(Qwen2VLImageProcessor(min_pixels=28**2, max_pixels=56**2), parts["tokenizer"])
    return QwenImageEditPlusPipeline(**parts, processor=processor)


def stable_diffusion_xl(*, prediction: str) -> DiffusionPipeline:
    return StableDiffusionXLPipeline(
        unet=_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
            cross_attention_dim=32,
        ),
        scheduler=EulerDiscreteScheduler(
            **BETAS,
            timestep_spacing="leading",
            prediction_type=prediction,
        ),
        vae=_vae(4, scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(_clip(16)),
        tokenizer=character_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip(16)),
        tokenizer_2=character_tokenizer(),
        add_watermarker=False,
    )


def z_image() -> DiffusionPipeline:
    tokenizer = _qwen_tokenizer()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(4, scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=Qwen3Model(_qwen3(tokenizer, layers=2)),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 32, 32],
        ),
    )


def flux2_klein(*, halvings: int = 1) -> DiffusionPipeline:
    tokenizer = _qwen_tokenizer()
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
            up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
            block_out_channels=(8, *(16,) * halvings),
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=Qwen3ForCausalLM(_qwen3(tokenizer, layers=28)),  # of which the 9th, 18th and 27th are read
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
    )


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """A token for every byte, and Qwen's chat."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate([*special, *characters])}, merges=[])
    tokenizer.add_tokens(VISION, special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return tokenizer


def _qwen3(tokenizer: Qwen2Tokenizer, layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )


def _unet(**more: Any) -> UNet2DConditionModel:
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DConditionModel(in_channels=4, out_channels=4, **sizes, **more)


def _vae(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=channels,
        norm_num_groups=4,
        **more,
    )


def _clip(width: int) -> CLIPTextConfig:
    tokenizer = character_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "FLUX.1-dev": lambda: flux(dev=True),
    "FLUX.1-schnell": lambda: flux(dev=False),
    "FLUX.1 Kontext": flux_kontext,
    "FLUX.2 klein": flux2_klein,
    "FLUX.2 klein, pictures": lambda: flux2_klein(halvings=3),
    "Qwen-Image": qwen_image,
    "Qwen-Image-Edit Plus": qwen_image_edit,
    "SD3.5": stable_diffusion_3,
    "SD3.5 without T5": lambda: stable_diffusion_3(t5=False),
    "SD1.5": lambda: stable_diffusion(prediction="epsilon"),
    "SD2.1 (v)": lambda: stable_diffusion(prediction="v_prediction"),
    "SDXL": lambda: stable_diffusion_xl(prediction="epsilon"),
    "SDXL (v)": lambda: stable_diffusion_xl(prediction="v_prediction"),
    "Wan 2.1": wan,
    "Wan 2.2 14B": lambda: wan(experts=True),
    "Wan 2.2 5B": lambda: wan(expand_timesteps=True),
    "Z-Image": z_image,
}


PICTURES = {"FLUX.1 Kontext": 1, "FLUX.2 klein, pictures": 2, "Qwen-Image-Edit Plus": 2}
"""Families that start from pictures, and from how many."""


def with_pictures(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """Prompts with so many random pictures each, of another size than what is drawn."""
    generator = np.random.default_rng(0)

    def picture() -> bytes:
        with io.BytesIO() as file:
            Image.fromarray(generator.integers(0, 256, (3, 5, 3), np.uint8)).resize((50, 30)).save(file, "PNG")
            return file.getvalue()

    every = [find_pictures([picture() for _ in range(count)], "image", Path()) if count else () for _ in texts]
    return tuple(Prompt(text, pictures=own) for text, own in zip(texts, every, strict=True))


def saved(name: str, folder: Path) -> Path:
    """The pipeline of a family in `folder`."""
    torch.manual_seed(0)
    pipeline = FAMILIES[name]()
    for part in ("transformer", "transformer_2", "unet"):
        for parameter in getattr(pipeline, part, None).parameters() if getattr(pipeline, part, None) else ():
            torch.nn.init.normal_(parameter, std=0.1)  # zero-initialised layers would hide what goes through them
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"  # in which the processor has its published class, as everywhere
    index.write_text(
        index.read_text().replace(PictureProcessor.__module__, "transformers").replace("Picture", "Qwen2VL")
    )
    return folder


def networks(pipeline: Any) -> dict[str, Any]:
    names = ("transformer", "transformer_2", "unet")
    return {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}


def trained_lora(pipeline: Any, rank: int = 2, alpha: float = 6) -> None:
    """Put adapters with numbers on the networks of a pipeline."""
    torch.manual_seed(1)
    for network in networks(pipeline).values():
        network.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=["to_q", "to_v"], init_lora_weights=False)
        )
        for name, parameter in network.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.5)


def as_lora(pipeline: Any, folder: Path) -> Path:
    """A LoRA in diffusers' form, as `branchgrpo export` writes it; the pipeline has it from then on."""
    trained_lora(pipeline)
    first = next(iter(networks(pipeline)))
    for number, network in enumerate(networks(pipeline).values(), start=1):
        file = f"pytorch_lora_weights{f'_{number}' if number > 1 else ''}.safetensors"
        layers = {f"{first}_lora_layers": get_peft_model_state_dict(network)}
        type(pipeline).save_lora_weights(folder, weight_name=file, **layers, **_collate_lora_metadata({first: network}))
    return folder if len(networks(pipeline)) > 1 else folder / "pytorch_lora_weights.safetensors"
