"""Reward models behind one interface, and the set of them that a run asks for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..proto.errors import InputError
from ..proto.scoring import ScoreReply, ScoreRequest

Scores = Mapping[str, npt.NDArray[np.float64]]


class Scorer(Protocol):
    """A reward model, loaded once and called in batches. One model may give several rewards."""

    def __call__(self, media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> Scores:
        """One finite float per picture and reward; `media` is uint8 [n, height, width, 3]."""


def _ocr() -> Scorer:
    from .ocr import OcrScorer

    return OcrScorer()


SCORERS: Mapping[str, Callable[[], Scorer]] = {"ocr": _ocr, "ocr_exact": _ocr}
"""Reward -> what loads the model that gives it. A model that gives several rewards is loaded once."""


class Scorers:
    """The reward models behind some rewards, in this process."""

    def __init__(self, rewards: Iterable[str]) -> None:
        """Loads the models. Raises InputError for a reward that doesn't exist."""
        check_rewards(rewards)
        self._models = [load() for load in dict.fromkeys(SCORERS[name] for name in rewards)]

    def score(self, request: ScoreRequest) -> ScoreReply:
        """Every reward that `request` asks for; raises ValueError if a model's scores are not whole and finite."""
        scores: dict[str, npt.NDArray[np.float64]] = {}
        for model in self._models:
            scores.update(model(request.media, request.prompts))
        return ScoreReply(scores={name: scores[name] for name in request.rewards}, id=request.id).check(request)


def check_rewards(rewards: Iterable[str]) -> None:
    """Raises InputError for a reward that doesn't exist."""
    if unknown := [name for name in rewards if name not in SCORERS]:
        raise InputError(f"unknown reward '{unknown[0]}' in rewards; there are {', '.join(sorted(SCORERS))}")
