"""CLAP (arXiv 2211.06687): the likeness of a sound and its prompt."""

import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import resample_poly
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from ..proto.errors import InputError
from ..proto.media import Media
from ..proto.settings import RewardSettings
from ..proto.usage import on_gpu
from .interface import Scorer
from .weights import check_tokenizer, device, load_tokenizer, load_whole, model_folder

REWARD = "clap"
TOKENIZER_OWNER = "RoBERTa's"
EXAMPLE = "laion/clap-htsat-unfused"


class Clap:
    """Cosine of sound and prompt, from -1 to 1, in float32.

    The model hears ten seconds. A longer sound is heard in windows of that length at equal distances, from its first
    second to its last, and its score is their mean.
    """

    def __init__(self, model: ClapModel, tokenizer: Any, ears: ClapFeatureExtractor, device: torch.device) -> None:
        self.device, self._tokenizer, self._ears = device, tokenizer, ears
        self._model: Any = model.eval().requires_grad_(False).to(device)
        text = model.config.text_config
        self._length = text.max_position_embeddings - text.pad_token_id - 1

    def __call__(self, media: Media, prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        """Scores in one call. Raises InputError for leaves without a sound."""
        return self.in_calls(media, prompts, sys.maxsize)

    @torch.no_grad()
    def in_calls(self, media: Media, prompts: Sequence[str], most: int) -> dict[str, npt.NDArray[np.float64]]:
        """Scores in calls with at most so many windows. Raises InputError for leaves without a sound."""
        if media.sound is None:
            raise InputError(f"rewards.{REWARD} scores sounds, and was given a {media.kind}; take it out")
        heard = windows(media, self._ears.sampling_rate, self._ears.nb_max_samples)
        every = [*heard.reshape(-1, heard.shape[-1])]
        sounds = torch.cat([self._heard(every[i : i + most]) for i in range(0, len(every), most)])
        distinct = list(dict.fromkeys(prompts))
        texts = self._tokenizer(
            distinct, padding=True, truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self.device)
        with on_gpu(self.device):
            told = self._model.get_text_features(texts.input_ids, texts.attention_mask).pooler_output
        of_each = told[[distinct.index(prompt) for prompt in prompts]]
        cosines = torch.einsum("nwd,nd->nw", sounds.reshape(*heard.shape[:2], -1), of_each)
        return {REWARD: cosines.mean(dim=1).cpu().double().numpy()}

    def _heard(self, sounds: Sequence[npt.NDArray[np.float64]]) -> torch.Tensor:
        """Unit features of windows, float32 [n, features]."""
        features = self._ears(
            [*sounds],
            truncation="rand_trunc",  # of which there is none: no window is too long
            sampling_rate=self._ears.sampling_rate,
            return_tensors="pt",
        )
        with on_gpu(self.device):
            found: torch.Tensor = self._model.get_audio_features(
                features.input_features.float().to(self.device)
            ).pooler_output
        return found


def windows(media: Media, sample_rate: int, length: int) -> npt.NDArray[np.float64]:
    """The sounds of media in one channel at another sample rate, cut into windows of `length` samples that cover them:
    float64 [n, windows, length], or one window as long as a sound that is shorter."""
    mono = media.waveforms.astype(np.float64).mean(axis=1)
    # bounded because the filter's length grows with both terms of the ratio; at usual rates it is exact
    ratio = Fraction(sample_rate, media.sample_rate).limit_denominator(sample_rate)
    sounds = resample_poly(mono, ratio.numerator, ratio.denominator, axis=1)
    rest = max(0, sounds.shape[1] - length)
    begins = np.linspace(0, rest, count_windows(sounds.shape[1], length)).round().astype(int)
    return np.stack([sounds[:, begin : begin + length] for begin in begins], axis=1)


def count_windows(sound: float, length: float) -> int:
    """How many windows cover a sound, at least one."""
    return max(math.ceil(sound / length), 1)


def load_clap(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """`pretrained` is a folder of a CLAP model without feature fusion, such as laion/clap-htsat-unfused.

    Raises InputError as `check_files` does, and for weights that are not the model's.
    """
    config = check_files(REWARD, settings)
    folder = model_folder(REWARD, settings.pretrained, "pretrained", "clap")
    tokenizer = load_tokenizer(REWARD, settings.tokenizer or str(folder), TOKENIZER_OWNER)
    check_tokenizer(REWARD, tokenizer, config.text_config.vocab_size, config.text_config.eos_token_id, TOKENIZER_OWNER)
    model = load_whole(ClapModel, REWARD, folder, "pretrained", "clap")
    ears = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    return Clap(model, tokenizer, ears, device(settings))


def check_files(reward: str, settings: RewardSettings) -> ClapConfig:
    """The configuration of the model in `pretrained`; no weights are read.

    Raises InputError for a folder without a CLAP model or its feature extractor, and for a model with feature fusion.
    """
    folder = model_folder(reward, settings.pretrained, "pretrained", "clap")
    config = ClapConfig.from_pretrained(folder, local_files_only=True)
    where = f"rewards.{reward}.pretrained is '{folder}'"
    if config.audio_config.enable_fusion:  # which hears three crops at random
        raise InputError(f"{where}, a model with feature fusion, whose scores are random; take {EXAMPLE}")
    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(f"{where}, which has no preprocessor_config.json; take the whole folder, as of {EXAMPLE}")
    return config
