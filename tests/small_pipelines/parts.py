"""Parts of small random pipelines that several families share."""

from typing import Any

from branchgrpo.rollout_workers.glyphs.pretrain import character_tokenizer
from diffusers import AutoencoderKL
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, Qwen2Tokenizer, Qwen3Config

VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
"""Qwen's tokens for pictures and clips."""
QWEN_CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
QWEN_PARTS_CHAT = QWEN_CHAT.replace("{{ m.content }}", "{{ m.content[0].text }}")
MISTRAL_CHAT = "{% for m in messages[1:] %}[INST]{{ m.content[0].text }}[/INST]{% endfor %}"
"""Without what the system says, which would take a token for each letter."""


def vae(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=channels,
        norm_num_groups=4,
        **more,
    )


def clip(width: int) -> CLIPTextConfig:
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


def qwen_tokenizer(*, chat: str = QWEN_CHAT) -> Qwen2Tokenizer:
    """A token for every byte, and a chat."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate([*special, *characters])}, merges=[])
    tokenizer.add_tokens(VISION, special_tokens=True)
    tokenizer.chat_template = chat
    return tokenizer


def qwen3(tokenizer: Qwen2Tokenizer, layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
