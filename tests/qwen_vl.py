"""Small random models of the Qwen-VL family, as reward models are made of them."""

import math
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

OWN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the tokens that Qwen-VL has for chats."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_alone = Tokenizer(models.BPE(vocabulary, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, pad_token=OWN_TOKENS[0])
    made.add_tokens(list(OWN_TOKENS), special_tokens=True)
    made.chat_template = CHAT
    return made


def random_model(kind: str, entries: int, picture: int) -> Any:
    text = {"vocab_size": entries, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    eyes: dict[str, Any] = {"depth": 2, "num_heads": 2}
    torch.manual_seed(3)
    if kind == "qwen2_vl":
        eyes |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        model: Any = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text, vision_config=eyes, image_token_id=picture)
        )
    else:
        eyes |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=eyes, image_token_id=picture)
        )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def fitted(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Sides in whole pairs of patches with an area between two, as the package qwen-vl-utils has it."""
    sides = [max(28, 28 * round(side / 28)) for side in (height, width)]
    if math.prod(sides) > most:
        sides = [28 * math.floor(side * math.sqrt(most / (height * width)) / 28) for side in (height, width)]
    elif math.prod(sides) < least:
        sides = [28 * math.ceil(side * math.sqrt(least / (height * width)) / 28) for side in (height, width)]
    return sides[0], sides[1]


def as_before(name: str) -> str:
    """A weight's name in transformers up to 4.51."""
    for today, before in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(today):
            return before + name.removeprefix(today)
    return name
