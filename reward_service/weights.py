"""The files of reward models: weights as they are published, and tokenizers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from ..proto.errors import InputError
from ..proto.settings import RewardSettings
from ..proto.tokenizer_files import missing_vocabulary


def device(settings: RewardSettings) -> torch.device:
    """The device that a reward model is to use."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


VIDEO_ALIGN = ("video_align", "video_align_motion", "video_align_text", "video_align_visual")
PUBLISHED = {
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
    "edit_reward": "model.safetensors",
    "hps": "HPS_v2.1_compressed.pt",
    "hps_v3": "HPSv3.safetensors",
    "image_reward": "ImageReward.pt",
    **dict.fromkeys(VIDEO_ALIGN, "checkpoint-11352/model.pth"),
}
"""Reward -> file of its published weights."""


def weights_file(reward: str, settings: RewardSettings) -> Path:
    """The file that `pretrained` names, itself or by its folder. Raises InputError if it isn't there."""
    name, path = PUBLISHED[reward], Path(settings.pretrained or "")
    path = path / name if path.is_dir() else path
    if settings.pretrained is None or not path.is_file():
        raise InputError(
            f"rewards.{reward}.pretrained is {settings.pretrained!r}; it must be {name}, or the folder with it"
        )
    return path


@contextmanager
def published(reward: str, path: Path) -> Iterator[None]:
    """Within the block, errors with weights are raised as InputError."""
    try:
        yield
    except InputError:  # which says what is wrong, such as no tokenizer, and is a ValueError too
        raise
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"rewards.{reward}.pretrained is '{path}', which doesn't hold the weights of {PUBLISHED[reward]}: {reason}"
        ) from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a safetensors file, or of a PyTorch one, of which no code is run.

    Raises ValueError for a file that is damaged, or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files readers raise anything, from EOFError to struct.error
        raise ValueError(f"it can't be read ({type(error).__name__}: {error})") from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not (named and all(isinstance(weight, torch.Tensor) for weight in weights.values())):
        raise ValueError(f"it holds a {type(weights).__name__}; it must hold tensors by name, and nothing else")
    return weights


SAMPLE = "a photo of a cat"
SAMPLE_IDS = {
    49408: (49406, 320, 1125, 539, 320, 2368, 49407),
    30524: (101, 1037, 6302, 1997, 1037, 4937, 102),
}
"""Entries of a published vocabulary (CLIP's; bert-base-uncased's and two of BLIP's) -> tokens of `SAMPLE` in it."""


def check_tokenizer(reward: str, tokenizer: Any, entries: int, last: int | None, whose: str = "CLIP's") -> None:
    """Raises InputError for a tokenizer that isn't that of a text tower with so many `entries`.

    `last` is the token at the end of each text, if it is known.
    """
    tokens = tuple(tokenizer(SAMPLE).input_ids)
    if entries in SAMPLE_IDS:
        fits = tokens == SAMPLE_IDS[entries]
    else:
        fits = len(tokenizer) <= entries and last in (None, tokens[-1])
    if not fits:
        raise InputError(
            f"rewards.{reward}.tokenizer isn't the model's: it has {len(tokenizer)} entries and makes {list(tokens)} "
            f"of '{SAMPLE}', the model's has {entries}; name a folder that has {whose}"
        )


def load_tokenizer(reward: str, folder: str, whose: str = "CLIP's") -> Any:
    """Raises InputError for a folder that holds none."""
    without = f"no tokenizer is in '{folder}'; name a folder that has {whose} with rewards.{reward}.tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{without}: {' '.join(str(error).split())}") from error
    if Path(folder).is_dir() and (missing := missing_vocabulary(Path(folder), tokenizer.vocab_files_names)):
        raise InputError(f"{without}: its vocabulary is missing ({missing})")
    return tokenizer


def model_folder(reward: str, folder: str | None, setting: str, kind: str) -> Path:
    """The folder of a model of transformers, whose configuration says that it is of this kind, such as `clip`.

    Raises InputError for a folder without one, or without safetensors.
    """
    path = Path(folder or "")
    if folder is None or model_type(path / "config.json") != kind or not any(path.glob("*.safetensors")):
        raise InputError(
            f"rewards.{reward}.{setting} is {folder!r}; it must be the folder of a {kind.upper()} model, with "
            "config.json and model.safetensors"
        )
    return path


def model_type(config: Path) -> object:
    """What a model's configuration says that it is; None if there is none to be read."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("model_type") if isinstance(content, dict) else None


def load_whole(model_class: Any, reward: str, folder: Path, setting: str, kind: str) -> Any:
    """The model in a folder, in float32 whatever its weights are kept in.

    Raises InputError if they are damaged, or some are missing.
    """
    try:
        model, found = model_class.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if absent := sorted(found["missing_keys"]):
            raise ValueError(f"{len(absent)} weights are missing, such as {absent[0]}")
    except SafetensorError as error:
        raise InputError(f"rewards.{reward}.{setting} is '{folder}', whose safetensors are damaged: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"rewards.{reward}.{setting} is '{folder}'; it must be the folder of a {kind.upper()} model: {reason}"
        ) from error
    return model
