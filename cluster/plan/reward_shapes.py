"""The reward models of a run as shapes without numbers: those that are torch models of a known architecture."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Qwen2VLModel,
)

from ...proto.settings import RewardSettings
from ...reward_service import clap, video_align
from ...reward_service.image_reward import LENGTH
from ...reward_service.scored_chat import SIDE, TRAINED
from ...rollout_workers.policies.decoded import Decoded

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
QWEN2_VL: dict[str, Any] = {
    "text_config": {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4},
    "vision_config": {"hidden_size": 3584},
}
"""Qwen2-VL 7B, behind HPS v3."""
QWEN2_VL_2B: dict[str, Any] = {
    "text_config": {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "num_key_value_heads": 2},
    "vision_config": {"hidden_size": 1536},
}
"""The one behind VideoAlign."""
QWEN25_VL: dict[str, Any] = {
    "text_config": QWEN2_VL["text_config"],
    "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
}
"""Qwen2.5-VL 7B, behind EditReward."""
CHATS = {"hps_v3": QWEN2_VL, "edit_reward": QWEN25_VL}
QUESTION_TOKENS = 450
"""About as many tokens have the questions of these models, with a prompt."""
CLIP_FRAMES_PER_SECOND, MAX_CLIP_PIXELS = 2.0, 448 * 448
"""How VideoAlign's published configuration shows clips."""


class LeafShape(NamedTuple):
    """What a leaf is, as far as the work of rewards depends on it."""

    height: int = 1
    width: int = 1
    frames: int = 1
    frame_rate: float = 1.0
    seconds: float = 0.0
    """Length of its sound."""

    @classmethod
    def of(cls, decoded: Decoded) -> "LeafShape":
        """The shape of decoded leaves."""
        pictures, sound = decoded.pictures, decoded.sound
        seconds = 0.0 if sound is None else sound.shape[-1] / decoded.sample_rate
        if pictures is None:
            return cls(seconds=seconds)
        frames = pictures.shape[1] if pictures.dim() == 5 else 1
        return cls(pictures.shape[-3], pictures.shape[-2], frames, decoded.frame_rate, seconds)


class Model(NamedTuple):
    """A reward model."""

    weights: float
    """Bytes of its weights."""
    call: Callable[[int], object]
    """Takes so many pictures, clips or windows of sound, within `metered`. Prompts are left out where each goes through
    the model once, however many pictures it has."""
    each: int
    """How many of these a leaf has."""
    at_once: float = math.inf
    """Maximum that goes through the model at once."""


def reward_shapes(
    rewards: Mapping[str, RewardSettings], leaf: LeafShape, *, gpu: bool = False
) -> dict[str, Model | None]:
    """Reward -> its model; None for one of own code, behind a url, or that is no torch model.

    On a `gpu` models that chat are in bfloat16.
    """
    return {name: _model(name, settings, leaf, gpu) for name, settings in rewards.items()}


def _model(name: str, settings: RewardSettings, leaf: LeafShape, gpu: bool) -> Model | None:
    if settings.url or settings.judge or settings.function or settings.scorer:
        return None
    if name == "image_reward":
        return _image_reward(leaf)
    if name == "clap":
        return _clap(settings, leaf)
    precision = torch.bfloat16 if gpu else torch.float32
    if name in CHATS:
        return _scored_chat(name, settings, leaf, precision)
    if name.startswith(video_align.REWARD):
        return _video_align(settings, leaf, precision)
    folder = Path((settings.backbone if name == "aesthetic" else settings.pretrained) or "")
    if name in ("clip_score", "pick_score", "aesthetic") and (folder / "config.json").is_file():
        return _clip(CLIPConfig.from_pretrained(folder, local_files_only=True), leaf)
    return _clip(CLIPConfig(**PUBLISHED[name]), leaf) if name in PUBLISHED else None


def _clip(config: CLIPConfig, leaf: LeafShape) -> Model:
    with torch.device("meta"):
        clip = CLIPModel(config).requires_grad_(False).eval()
    side = config.vision_config.image_size

    def call(pictures: int) -> object:
        return clip.vision_model(pixel_values=_pixels(pictures, side))

    return Model(weight_bytes(clip), call, leaf.frames)


def _image_reward(leaf: LeafShape) -> Model:
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

    return Model(weight_bytes(sees) + weight_bytes(reads), call, leaf.frames)


def _clap(settings: RewardSettings, leaf: LeafShape) -> Model:
    """The tower that hears: windows of ten seconds each."""
    folder = Path(settings.pretrained or "")
    there = (folder / "config.json").is_file() and (folder / "preprocessor_config.json").is_file()
    config = ClapConfig.from_pretrained(folder, local_files_only=True) if there else ClapConfig()
    ears = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True) if there else ClapFeatureExtractor()
    with torch.device("meta"):
        model = ClapModel(config).requires_grad_(False).eval()
    lines = ears.nb_max_samples // ears.hop_length + 1

    def call(windows: int) -> object:
        heard = torch.empty(windows, 1, lines, ears.feature_size, device="meta")
        return model.get_audio_features(heard)

    length = ears.nb_max_samples / ears.sampling_rate
    return Model(weight_bytes(model), call, clap.count_windows(leaf.seconds, length))


def _scored_chat(name: str, settings: RewardSettings, leaf: LeafShape, precision: torch.dtype) -> Model:
    """A model that is asked each of its questions about every picture."""
    trained, patch = TRAINED[name], 14
    model = _chat(trained.backbone, settings, CHATS[name], precision)
    shown, side = 1 + trained.sources, SIDE // patch

    def call(pictures: int) -> None:
        for _ in trained.questions:
            _ask(model, pictures, torch.tensor([[1, side, side]] * (pictures * shown)))

    return Model(weight_bytes(model), call, leaf.frames)


def _video_align(settings: RewardSettings, leaf: LeafShape, precision: torch.dtype) -> Model:
    """A model that is asked about one clip after the other."""
    model, patch = _chat(Qwen2VLModel, settings, QWEN2_VL_2B, precision), 14
    shown = len(video_align.frames_shown(leaf.frames, leaf.frame_rate, CLIP_FRAMES_PER_SECOND))
    pixels = min(max(leaf.height * leaf.width, video_align.MIN_PIXELS), MAX_CLIP_PIXELS)
    side = round(math.sqrt(pixels) / patch / 2) * 2

    def call(clips: int) -> None:
        _ask(model, clips, torch.tensor([[max(shown // video_align.PAIR, 1), side, side]] * clips))

    return Model(weight_bytes(model), call, 1, at_once=1)


def _chat(kind: Any, settings: RewardSettings, published: Mapping[str, Any], precision: torch.dtype) -> Any:
    folder = Path(settings.backbone or "")
    there = (folder / "config.json").is_file()
    config_class = kind.config_class
    config = config_class.from_pretrained(folder, local_files_only=True) if there else config_class(**published)
    with torch.device("meta"):
        return kind(config).requires_grad_(False).eval().to(precision)


def _ask(model: Any, questions: int, grids: torch.Tensor) -> None:
    """A pass of questions about pictures or clips whose patches are so many in time, height and width, int64 [shown,
    3]."""
    config = model.config
    vision = config.vision_config
    patches = int(grids.prod(dim=1).sum())
    seen = patches // vision.spatial_merge_size**2 // questions
    ids = torch.zeros(questions, QUESTION_TOKENS + seen, dtype=torch.long)
    ids[:, :seen] = config.image_token_id
    numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.arange(ids.shape[1]).expand(3, *ids.shape),
        pixel_values=torch.empty(patches, numbers, device="meta", dtype=model.dtype),
        image_grid_thw=grids,
        use_cache=False,
    )


def weight_bytes(module: torch.nn.Module) -> float:
    """Bytes of a module's parameters."""
    return sum(parameter.nbytes for parameter in module.parameters())


def _pixels(pictures: int, side: int) -> torch.Tensor:
    return torch.empty(pictures, 3, side, side, device="meta")
