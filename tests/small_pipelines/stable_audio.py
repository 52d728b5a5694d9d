"""A small random pipeline of Stable Audio: waveforms of half a second, at 400 samples per second."""

from diffusers import (
    AutoencoderOobleck,
    CosineDPMSolverMultistepScheduler,
    DiffusionPipeline,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel


def stable_audio() -> DiffusionPipeline:
    return StableAudioPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            sampling_rate=400,
        ),
        text_encoder=T5EncoderModel(T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
        projection_model=StableAudioProjectionModel(text_encoder_dim=32, conditioning_dim=16, min_value=0, max_value=9),
        tokenizer=ByT5Tokenizer(extra_ids=0, model_max_length=6),
        transformer=StableAudioDiTModel(
            sample_size=24,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_attention_heads=2,
            out_channels=4,
            cross_attention_dim=16,
            time_proj_dim=8,
            global_states_input_dim=32,
            cross_attention_input_dim=16,
        ),
        scheduler=CosineDPMSolverMultistepScheduler(),
    )
