"""A small random pipeline of Chroma."""

from diffusers import ChromaPipeline, ChromaTransformer2DModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from small_pipelines.parts import vae
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel


def chroma() -> DiffusionPipeline:
    config = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True),
        vae=vae(4, scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=T5EncoderModel(config),
        tokenizer=ByT5Tokenizer(extra_ids=0),
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
    )
