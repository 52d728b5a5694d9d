"""The interface of reward models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..proto.errors import InputError
from ..proto.media import Media, Pictures, Reads
from ..proto.settings import RewardSettings

Scores = Mapping[str, npt.NDArray[np.float64]]


class Scorer(Protocol):
    """A reward model, loaded once and called in batches. One model may give several rewards."""

    def __call__(self, media: Media, prompts: Sequence[str]) -> Scores:
        """One finite float per leaf, and reward. Raises InputError for media of a kind that it doesn't score."""


PictureScorer = Callable[[Pictures, Sequence[str]], Scores]
"""A reward model of pictures, uint8 [n, height, width, 3]."""
Loader = Callable[[RewardSettings, int | None], Scorer]
"""Loads a model, told its settings and how many CPU threads it may use (None: all)."""


def per_frame(score: PictureScorer) -> Scorer:
    """A scorer of pictures and clips, from one of pictures: a clip's score is the mean over its frames."""

    def scorer(media: Media, prompts: Sequence[str]) -> Scores:
        pictures, each = seen(media), media.frames
        scores = score(pictures.reshape(-1, *pictures.shape[-3:]), [prompt for prompt in prompts for _ in range(each)])
        return {name: values.reshape(len(media), each).mean(axis=1) for name, values in scores.items()}

    return scorer


def reading(scorer: Scorer, reads: Reads) -> Scorer:
    """A scorer that takes of leaves what it reads, whatever else comes with them."""
    return lambda media, prompts: scorer(media.read(reads), prompts)


def seen(media: Media) -> Pictures:
    """The pictures or clips of media. Raises InputError for sounds alone."""
    if media.pictures is None:
        raise InputError("a reward of pictures was given sounds; rewards of sounds are clap, and your own code")
    return media.pictures
