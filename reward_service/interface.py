"""The interface of reward models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class PartScorer(Scorer, Protocol):
    """A scorer whose model takes parts of leaves: the frames of clips, or windows of sounds."""

    def in_calls(self, media: Media, prompts: Sequence[str], most: int) -> Scores:
        """The same scores, in calls of the model with at most so many parts."""


class PerFrame:
    """A scorer of pictures and clips, from one of pictures: a clip's score is the mean over its frames."""

    def __init__(self, score: PictureScorer) -> None:
        self._score = score

    def __call__(self, media: Media, prompts: Sequence[str]) -> Scores:
        """Scores of all frames in one call. Raises InputError for sounds alone."""
        return self.in_calls(media, prompts, len(media) * max(media.frames, 1))

    def in_calls(self, media: Media, prompts: Sequence[str], most: int) -> Scores:
        """Scores in calls with at most so many frames. Raises InputError for sounds alone."""
        pictures, each = seen(media), media.frames
        frames = pictures.reshape(-1, *pictures.shape[-3:])
        of_each = [prompt for prompt in prompts for _ in range(each)]
        calls = [self._score(frames[i : i + most], of_each[i : i + most]) for i in range(0, len(frames), most)]
        return {
            name: np.concatenate([call[name] for call in calls]).reshape(len(media), each).mean(axis=1)
            for name in calls[0]
        }


def per_frame(score: PictureScorer) -> PartScorer:
    """A scorer of pictures and clips, from one of pictures: a clip's score is the mean over its frames."""
    return PerFrame(score)


def reading(scorer: Scorer, reads: Reads) -> Scorer:
    """A scorer that takes of leaves what it reads, whatever else comes with them."""
    return lambda media, prompts: scorer(media.read(reads), prompts)


def seen(media: Media) -> Pictures:
    """The pictures or clips of media. Raises InputError for sounds alone."""
    if media.pictures is None:
        raise InputError("a reward of pictures was given sounds; rewards of sounds are clap, and your own code")
    return media.pictures
