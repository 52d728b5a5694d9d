"""VideoAlign (arXiv 2501.13918): how good a clip looks, how well it moves and how well it shows its prompt.

Qwen2-VL is asked about all three at once and read at a token for each. Its weights are published with their LoRA beside
them, as PEFT names both, and with the scale of its authors' scores.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen2VLModel

from ..proto.errors import InputError
from ..proto.media import Media, Pictures
from ..proto.settings import RewardSettings
from .chat import Chat, check_backbone, load_chat, read_texts, taken
from .interface import Scorer, Scores, seen
from .weights import device, published, read_weights, weights_file

REWARD = "video_align"
PARTS = {"visual": "VQ", "motion": "MQ", "text": "TA"}
"""Part of the reward -> its name in the published files."""
TOKENS = [f"<|{name}_reward|>" for name in PARTS.values()]
FILE, QUESTION = "prompt_template.py", "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
"""The authors' file with the question, and its name there."""
AS_TRAINED = {"sample_type": "uniform", "prompt_template_type": "detailed_special", "num_frames": None}
"""What the configuration says of how clips are shown; nothing else is published."""
MIN_FRAMES, MAX_FRAMES, PAIR = 4, 768, 2
"""Bounds of the frames that are shown of a clip, and how many the model sees at once."""
CHANNELS = 3
MIN_PIXELS = 128 * 28 * 28
"""Minimum pixels of a frame. The maximum is in the configuration."""


class VideoAlign:
    """Gives `video_align`, which is the sum of `video_align_visual`, `video_align_motion` and `video_align_text`.

    Each of these is less its mean and divided by its deviation over its authors' data; higher is better.
    """

    def __init__(self, chat: Chat, head: torch.Tensor, question: str, config: Mapping[str, Any]) -> None:
        """`head` has a row for all three, or one for each, float32 [1 or 3, features]."""
        self._chat, self._head, self._question = chat, head, question
        self._fps = config["data_config"]["fps"]
        most = int(config["data_config"]["max_frame_pixels"])
        self._eyes = Qwen2VLImageProcessorPil(size={"shortest_edge": MIN_PIXELS, "longest_edge": most})
        scale = config.get("inference_config") or {}
        self._means = np.array([scale.get(f"{name}_mean", 0.0) for name in PARTS.values()])
        self._deviations = np.array([scale.get(f"{name}_std", 1.0) for name in PARTS.values()])

    def __call__(self, media: Media, prompts: Sequence[str]) -> Scores:
        """Raises InputError for leaves that aren't clips of two frames or more, and for a prompt with one of the
        model's own tokens."""
        clips = seen(media)
        if media.frames < PAIR:
            raise InputError(f"rewards.{REWARD} scores clips of two frames or more, and was given a {media.kind}")
        shown = clips[:, frames_shown(media.frames, media.frame_rate, self._fps)]
        raw = np.stack([self._rated(clip, prompt) for clip, prompt in zip(shown, prompts, strict=True)])
        rated = (raw - self._means) / self._deviations
        parts = {f"{REWARD}_{part}": rated[:, number] for number, part in enumerate(PARTS)}
        return {REWARD: rated.sum(axis=1), **parts}

    def _rated(self, clip: Pictures, prompt: str) -> npt.NDArray[np.float64]:
        """The three ratings of a clip as the head gives them, float64 [3]. Clips go through the model one by one, for
        each has as many tokens as a batch of pictures."""
        patches, grid = paired(self._eyes([Image.fromarray(frame) for frame in clip], return_tensors="pt"))
        states = self._chat.states([self._question.format(text_prompt=prompt)], patches, grid)[0]
        return (states * self._head).sum(dim=1).cpu().double().numpy()


def frames_shown(frames: int, frame_rate: float, per_second: float) -> npt.NDArray[np.int64]:
    """Which frames of a clip are shown: about `per_second`, in whole pairs, at equal distances from the first to the
    last."""
    most = min(MAX_FRAMES, frames) // PAIR * PAIR
    count = round(min(max(frames / frame_rate * per_second, MIN_FRAMES), most) / PAIR) * PAIR
    return np.linspace(0, frames - 1, count).round().astype(np.int64)


def paired(frames: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches of a clip, of those of its frames as pictures, in which each frame stands twice; and their number in
    time, height and width, int64 [1, 3]."""
    (_, height, width), count = frames.image_grid_thw[0].tolist(), len(frames.image_grid_thw)
    patches = frames.pixel_values.reshape(count // PAIR, PAIR, height * width, CHANNELS, PAIR, -1)
    pairs = torch.stack([patches[:, number, :, :, number] for number in range(PAIR)], dim=-2)
    return pairs.reshape(count // PAIR * height * width, -1), torch.tensor([[count // PAIR, height, width]])


def load_video_align(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """`pretrained` is the published folder, `backbone` a folder with the configuration and the tokenizer of
    Qwen2-VL-2B-Instruct, `instruction` the folder of its authors' code.

    Raises InputError for files that are missing or not the model's.
    """
    question, config = check_files(REWARD, settings)
    path, own = weights_file(REWARD, settings), device(settings)
    with published(REWARD, path):
        weights = merged(taken(read_weights(path), "base_model.model."), config["peft_lora_config"])
        head = weights["rm_head.weight"].float()
        if len(head) not in (1, len(PARTS)):
            raise ValueError(f"its head gives {len(head)} ratings; it must be 1 or {len(PARTS)}")
        chat = load_chat(REWARD, Qwen2VLModel, weights, settings, TOKENS, own)
    return VideoAlign(chat, head.to(own), question, config)


def check_files(reward: str, settings: RewardSettings) -> tuple[str, dict[str, Any]]:
    """The question, and the configuration. Raises InputError for files that are missing, and for a model that is shown
    clips in another way than the published one. Weights are not read."""
    path = weights_file(reward, settings).parents[1] / "model_config.json"
    where = f"rewards.{reward}.pretrained is {settings.pretrained!r}, whose {path.name}"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        shown = config["data_config"]
        if not all(isinstance(shown[name], int | float) and shown[name] > 0 for name in ("fps", "max_frame_pixels")):
            raise ValueError("it doesn't say how many frames and pixels are shown")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} isn't that of KwaiVGI/VideoReward: {error}") from error
    for name, value in AS_TRAINED.items():
        if shown.get(name, value) != value:
            raise InputError(f"{where} says {name}: {shown[name]!r}; it must be {value!r}")
    check_backbone(reward, settings, Qwen2VLModel)
    return read_texts(reward, settings, "the folder", [FILE], [QUESTION])[QUESTION], config


def merged(weights: Mapping[str, torch.Tensor], lora: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of the model alone, with each LoRA added to its layer in float32."""
    alone = {name.replace(".base_layer.", "."): weight for name, weight in weights.items() if ".lora_" not in name}
    for name, down in weights.items():
        layer, adapter, _ = name.partition(".lora_A.default")
        if adapter:
            factor = lora["lora_alpha"] / (math.sqrt(len(down)) if lora.get("use_rslora") else len(down))
            up = weights[f"{layer}.lora_B.default.weight"].float()
            alone[f"{layer}.weight"] = alone[f"{layer}.weight"].float() + factor * up @ down.float()
    return alone
