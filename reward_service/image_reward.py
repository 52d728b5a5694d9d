"""ImageReward v1 (arXiv 2304.05977): BLIP's picture tower, its text tower that looks at the picture, and a head."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from ..proto.settings import RewardSettings
from ..proto.usage import on_gpu
from .interface import Scorer, per_frame
from .linear import LinearHead
from .preprocessing import cropped_by_torchvision, prepared
from .weights import check_tokenizer, device, load_tokenizer, published, read_weights, weights_file

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the scores on its training data."""
LENGTH = 35
TOKENIZER = "bert-base-uncased's"
HEAD_WIDTH = 64
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "blocks": "encoder.layers",
    "norm": "post_layernorm",
}
"""Published names of weights -> their names in transformers' BlipVisionModel, where these differ."""


class ImageReward:
    """Scores pictures by how well they do their prompts."""

    def __init__(self, weights: Mapping[str, torch.Tensor], tokenizer: Any, device: torch.device) -> None:
        """`weights` have the names of the file ImageReward.pt, `tokenizer` is BERT's."""
        self.device, self._tokenizer = device, tokenizer
        vision = {vision_name(name): value for name, value in _below(weights, "blip.visual_encoder.").items()}
        text = _below(weights, "blip.text_encoder.")
        self._vision = _loaded(BlipVisionModel(vision_config(vision)), vision, device)
        width = vision["embeddings.class_embedding"].shape[-1]
        self._text = _loaded(BlipTextModel(text_config(text, width), add_pooling_layer=False), text, device)
        self._size = self._vision.config.image_size
        self._head = LinearHead(_below(weights, "mlp."), device)

    @property
    def entries(self) -> int:
        """Number of entries of the vocabulary."""
        return int(self._text.config.vocab_size)

    @torch.no_grad()
    def __call__(self, media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        pixels = prepared(media, self._size, cropped_by_torchvision, self.device)
        with on_gpu(self.device):
            seen = self._vision(pixel_values=pixels).last_hidden_state
        distinct = list(dict.fromkeys(prompts))
        tokens = self._tokenizer(
            distinct, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(self.device)
        every = [distinct.index(prompt) for prompt in prompts]
        with on_gpu(self.device):
            read = self._text(
                input_ids=tokens.input_ids[every],
                attention_mask=tokens.attention_mask[every],
                encoder_hidden_states=seen,
            ).last_hidden_state[:, 0]
            scores = (self._head(read.float()) - MEAN) / DEVIATION
        return {"image_reward": scores.reshape(-1).cpu().double().numpy()}


def load_image_reward(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """`pretrained` is the file ImageReward.pt, or its folder; `tokenizer` a folder with bert-base-uncased's."""
    path = weights_file("image_reward", settings)
    tokenizer = load_tokenizer("image_reward", settings.tokenizer or str(path.parent), TOKENIZER)
    with published("image_reward", path):
        model = ImageReward(read_weights(path), tokenizer, device(settings))
    check_tokenizer("image_reward", tokenizer, model.entries, None, TOKENIZER)
    return per_frame(model)


def check_files(reward: str, settings: RewardSettings) -> None:
    """Raises InputError if files of the reward aren't there. Weights are not read."""
    path = weights_file(reward, settings)
    load_tokenizer(reward, settings.tokenizer or str(path.parent), TOKENIZER)


def vision_name(published: str) -> str:
    """The name that transformers' BlipVisionModel has for a weight of the published picture tower."""
    if published in VISION:
        return VISION[published]
    module, _, kind = published.rpartition(".")
    if module in VISION:
        return f"{VISION[module]}.{kind}"
    first, number, part = module.split(".", 2)
    return f"{VISION[first]}.{number}.{VISION.get(part, part)}.{kind}"


def vision_config(weights: Mapping[str, torch.Tensor]) -> BlipVisionConfig:
    """The shape of a picture tower with these weights."""
    hidden, _, _, patch = weights["embeddings.patch_embedding.weight"].shape
    patches = weights["embeddings.position_embedding"].shape[1] - 1
    return BlipVisionConfig(
        hidden_size=hidden,
        intermediate_size=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.")),
        num_attention_heads=hidden // HEAD_WIDTH,
        patch_size=patch,
        image_size=round(patches**0.5) * patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )


def text_config(weights: Mapping[str, torch.Tensor], vision_width: int) -> BlipTextConfig:
    """The shape of a text tower with these weights."""
    vocabulary, hidden = weights["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        encoder_hidden_size=vision_width,
        intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.")),
        num_attention_heads=hidden // HEAD_WIDTH,
        max_position_embeddings=weights["embeddings.position_embeddings.weight"].shape[0],
    )


def _below(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights of a part, by their names within it. Position numbers, which old files have, are no weights."""
    found = {name.removeprefix(prefix): value.float() for name, value in weights.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if not name.endswith("position_ids")}


def _loaded(model: Any, weights: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False).to(device)
