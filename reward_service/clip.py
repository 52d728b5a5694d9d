"""Rewards from CLIP's towers: CLIPScore, PickScore, HPS v2.1, and the LAION aesthetic predictor."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ftfy
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from ..proto.settings import RewardSettings
from ..proto.usage import on_gpu
from .interface import Scorer, per_frame
from .linear import LinearHead
from .open_clip import clip_config, converted
from .preprocessing import Fit, cropped, cropped_by_torchvision, padded, prepared
from .weights import (
    check_tokenizer,
    device,
    load_tokenizer,
    load_whole,
    model_folder,
    published,
    read_weights,
    weights_file,
)


class ClipTowers:
    """A CLIP model on a device, in float32."""

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: Any,
        device: torch.device,
        fit: Fit = cropped,
        clean: Callable[[str], str] = str,
    ) -> None:
        """Pictures are made square by `fit`; prompts go through `clean` before the tokenizer."""
        self.device, self._tokenizer, self._fit, self._clean = device, tokenizer, fit, clean
        self._model: Any = model.eval().requires_grad_(False).to(device)
        self._size = model.config.vision_config.image_size
        self._length = model.config.text_config.max_position_embeddings

    @property
    def scale(self) -> float:
        """CLIP's own factor before its softmax."""
        return float(self._model.logit_scale.exp())

    @torch.no_grad()
    def pictures(self, media: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Unit features, float32 [n, features], of uint8 [n, height, width, 3]."""
        pixels = prepared(media, self._size, self._fit, self.device)
        with on_gpu(self.device):
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            return normalize(self._model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit features, float32 [n, features]; each distinct prompt goes through the tower once."""
        distinct = list(dict.fromkeys(prompts))
        tokens = self._tokenizer(
            [self._clean(prompt) for prompt in distinct],
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).input_ids.to(self.device)
        with on_gpu(self.device):
            pooled = self._model.text_model(input_ids=tokens).pooler_output
            features = normalize(self._model.text_projection(pooled), dim=-1)
        return features[[distinct.index(prompt) for prompt in prompts]]


class ClipSimilarity:
    """Cosine of picture and prompt, times a factor."""

    def __init__(self, reward: str, towers: ClipTowers, factor: float = 1.0, *, at_least: float = -np.inf) -> None:
        self._reward, self._towers, self._factor, self._least = reward, towers, factor, at_least

    def __call__(self, media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        cosines = torch.einsum("nd,nd->n", self._towers.pictures(media), self._towers.prompts(prompts))
        scores = self._factor * cosines.clamp(min=self._least)
        return {self._reward: scores.cpu().double().numpy()}


class Aesthetic:
    """LAION's aesthetic predictor v2 (`sac+logos+ava1-l14-linearMSE.pth`) over ViT-L/14's unit features."""

    def __init__(self, towers: ClipTowers, weights: Mapping[str, torch.Tensor]) -> None:
        self._towers, self._head = towers, LinearHead(weights, towers.device)

    @torch.no_grad()
    def __call__(self, media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        return {"aesthetic": self._head(self._towers.pictures(media)).reshape(-1).cpu().double().numpy()}


def load_towers(folder: str) -> ClipTowers:
    """The CLIP model in a folder, for its features alone. Raises InputError for a folder without one."""
    return _from_folder("clip_score", RewardSettings(pretrained=folder))


def load_picture_tower(folder: str) -> ClipTowers:
    """The CLIP model in a folder, for the features of pictures alone: its tokenizer may lie elsewhere. Raises
    InputError for a folder without one."""
    path = model_folder("clip_score", folder, "pretrained", "clip")
    model = load_whole(CLIPModel, "clip_score", path, "pretrained", "clip")
    return ClipTowers(model, None, device(RewardSettings()))


def load_clip_score(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """CLIPScore (arXiv 2104.08718): 2.5 * max(cosine, 0). `pretrained` is a folder of a CLIP model."""
    return per_frame(ClipSimilarity("clip_score", _from_folder("clip_score", settings), 2.5, at_least=0.0))


def load_pick_score(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """PickScore v1 (arXiv 2305.01569): CLIP's scale times the cosine. `pretrained` is the folder PickScore_v1."""
    towers = _from_folder("pick_score", settings)
    return per_frame(ClipSimilarity("pick_score", towers, towers.scale))


def load_hps(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """HPS v2.1 (arXiv 2306.09341): the cosine. `pretrained` is the file HPS_v2.1_compressed.pt, or a folder with it."""
    path = weights_file("hps", settings)
    tokenizer = load_tokenizer("hps", settings.tokenizer or str(path.parent))
    with published("hps", path):
        weights = converted(read_weights(path))
        model = CLIPModel(clip_config(weights))
        model.load_state_dict(weights, strict=True)
    check_clip_tokenizer("hps", tokenizer, model.config)
    return per_frame(ClipSimilarity("hps", ClipTowers(model, tokenizer, device(settings), padded, cleaned)))


def cleaned(prompt: str) -> str:
    """A prompt as the `hpsv2` package reads it: in ordinary characters, single blanks and lower case.

    >>> cleaned("“Tom &amp;amp; Jerry”,  cafÃ©")
    '"tom & jerry", café'
    """
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split()).lower()


def load_aesthetic(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """`pretrained` is the file of the predictor, or a folder with it, `backbone` the folder of CLIP ViT-L/14."""
    path = weights_file("aesthetic", settings)
    backbone = settings.model_copy(update={"pretrained": settings.backbone})
    towers = _from_folder("aesthetic", backbone, "backbone", cropped_by_torchvision)
    with published("aesthetic", path):
        return per_frame(Aesthetic(towers, read_weights(path)))


def _from_folder(reward: str, settings: RewardSettings, setting: str = "pretrained", fit: Fit = cropped) -> ClipTowers:
    folder = model_folder(reward, settings.pretrained, setting, "clip")
    tokenizer = load_tokenizer(reward, settings.tokenizer or str(folder))
    model = load_whole(CLIPModel, reward, folder, setting, "clip")
    check_clip_tokenizer(reward, tokenizer, model.config)
    return ClipTowers(model, tokenizer, device(settings), fit)


def check_clip_tokenizer(reward: str, tokenizer: Any, config: CLIPConfig) -> None:
    """Raises InputError for a tokenizer that isn't the one of a CLIP model."""
    text = config.text_config
    # Old configurations always say 2. The token with the highest number then ends the text.
    last = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    check_tokenizer(reward, tokenizer, text.vocab_size, last)


def check_files(reward: str, settings: RewardSettings) -> None:
    """Raises InputError if files that a reward of this module is made of aren't there. Weights are not read."""
    if reward == "aesthetic":
        weights_file(reward, settings)
        model_folder(reward, settings.backbone, "backbone", "clip")
    elif reward == "hps":
        path = weights_file(reward, settings)
        load_tokenizer(reward, settings.tokenizer or str(path.parent))
    else:
        folder = model_folder(reward, settings.pretrained, "pretrained", "clip")
        tokenizer = load_tokenizer(reward, settings.tokenizer or str(folder))
        check_clip_tokenizer(reward, tokenizer, CLIPConfig.from_pretrained(folder, local_files_only=True))
