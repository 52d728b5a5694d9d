"""The reward models of a run as shapes without numbers: those that are torch models of a known architecture."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

from ...proto.settings import RewardSettings
from ...reward_service.image_reward import LENGTH

VIT_H = CLIPVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    image_size=224,
)
"""The picture tower of HPS v2.1 and PickScore."""
VIT_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
}
"""The sizes of the picture towers of the aesthetic predictor and of ImageReward."""
CLIP_H = {
    "vision_config": VIT_H.to_dict(),
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "projection_dim": 1024,
}
CLIP_L = {
    "vision_config": {**VIT_L, "patch_size": 14},
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "projection_dim": 768,
}
PUBLISHED = {"hps": CLIP_H, "pick_score": CLIP_H, "aesthetic": CLIP_L}
"""Reward -> the CLIP model that it is published with."""


class Model(NamedTuple):
    """A reward model."""

    parameters: int
    call: Callable[[int], object]
    """Takes so many pictures, within `metered`. Prompts are left out where each goes through the model once, however
    many pictures it has."""


def reward_shapes(rewards: Mapping[str, RewardSettings]) -> dict[str, Model | None]:
    """Reward -> its model; None for one of own code, behind a url, or that is no torch model."""
    return {name: _model(name, settings) for name, settings in rewards.items()}


def _model(name: str, settings: RewardSettings) -> Model | None:
    if settings.url or settings.judge or settings.function or settings.scorer:
        return None
    if name == "image_reward":
        return _image_reward()
    folder = Path((settings.backbone if name == "aesthetic" else settings.pretrained) or "")
    if name in ("clip_score", "pick_score", "aesthetic") and (folder / "config.json").is_file():
        return _clip(CLIPConfig.from_pretrained(folder, local_files_only=True))
    return _clip(CLIPConfig(**PUBLISHED[name])) if name in PUBLISHED else None


def _clip(config: CLIPConfig) -> Model:
    with torch.device("meta"):
        clip = CLIPModel(config).requires_grad_(False).eval()
    side = config.vision_config.image_size
    return Model(_parameters(clip), lambda pictures: clip.vision_model(pixel_values=_pixels(pictures, side)))


def _image_reward() -> Model:
    """BLIP's picture tower, and its text tower, which looks at each picture."""
    vision = BlipVisionConfig(**VIT_L, patch_size=16)
    with torch.device("meta"):
        sees = BlipVisionModel(vision).requires_grad_(False).eval()
        text = BlipTextConfig(encoder_hidden_size=vision.hidden_size, num_attention_heads=12)
        reads = BlipTextModel(text, add_pooling_layer=False).requires_grad_(False).eval()

    def call(pictures: int) -> object:
        seen = sees(_pixels(pictures, vision.image_size)).last_hidden_state
        tokens = torch.ones(pictures, LENGTH, dtype=torch.long, device="meta")
        return reads(input_ids=tokens, attention_mask=tokens, encoder_hidden_states=seen)

    return Model(_parameters(sees) + _parameters(reads), call)


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _pixels(pictures: int, side: int) -> torch.Tensor:
    return torch.empty(pictures, 3, side, side, device="meta")
