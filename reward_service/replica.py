"""One replica of a reward model: it joins requests of any trees and workers into batches.

A plain class; `cluster/on_ray/reward_deployment.py` makes a Ray Serve deployment of it.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..proto.errors import InputError
from ..proto.scoring import NotScored, ScoreReply, ScoreRequest
from ..proto.settings import RewardPoolSettings, RewardSettings
from ..proto.tracing import span
from ..proto.user_code import described
from . import metrics
from .own_code import may_pass
from .scorers import load_scorer, reply


class Replica:
    """Scores batches of requests by the rewards of one model."""

    def __init__(self, model: str, rewards: Mapping[str, RewardSettings], settings: RewardPoolSettings) -> None:
        """Loads the model."""
        self.model, self.rewards, self.settings = model, list(rewards), settings
        self._remote = any(reward.url for reward in rewards.values())
        name, own = next(iter(rewards.items()))
        self._scorer = load_scorer(name, own, settings.threads)

    async def score(
        self, media: Sequence[npt.NDArray[np.uint8]], prompts: Sequence[Sequence[str]], ids: Sequence[str]
    ) -> list[ScoreReply | InputError | NotScored]:
        """The reply to each request, or why it can't be scored: one bad request spoils no other."""
        start, count = time.perf_counter(), sum(len(pictures) for pictures in media)
        try:
            with span("score", pictures=count, requests=list(ids)):
                requests = list(zip(media, prompts, ids, strict=True))
                if self.settings.deterministic or len(requests) == 1:
                    return [await asyncio.to_thread(self._one, *request) for request in requests]
                try:
                    return await asyncio.to_thread(self._together, media, prompts, ids)
                except Exception as error:
                    if isinstance(error, NotScored) and self._remote:  # which has been asked often enough
                        return [error] * len(requests)
                    # Find out which of them it was.
                    return [await asyncio.to_thread(self._one, *request) for request in requests]
        finally:
            metrics.BATCH_PICTURES.labels(self.model).observe(count)
            metrics.SCORING_SECONDS.labels(self.model).observe(time.perf_counter() - start)

    def _one(
        self, media: npt.NDArray[np.uint8], prompts: Sequence[str], id: str
    ) -> ScoreReply | InputError | NotScored:
        try:
            return self._score(media, prompts, id)
        except Exception as error:
            metrics.FAILURES.labels(self.model).inc()
            if isinstance(error, (InputError, NotScored)):
                return error
            return NotScored(described(error), final=not may_pass(error))

    def _together(
        self, media: Sequence[npt.NDArray[np.uint8]], prompts: Sequence[Sequence[str]], ids: Sequence[str]
    ) -> list[ScoreReply | InputError | NotScored]:
        """Requests as one, and its scores dealt out again."""
        every = self._score(np.concatenate(media), [prompt for own in prompts for prompt in own], "")
        ends = np.cumsum([len(pictures) for pictures in media])[:-1]
        dealt = {name: np.split(values, ends) for name, values in every.scores.items()}
        return [ScoreReply({name: parts[i] for name, parts in dealt.items()}, id) for i, id in enumerate(ids)]

    def _score(self, media: npt.NDArray[np.uint8], prompts: Sequence[str], id: str) -> ScoreReply:
        """Scores of any number of pictures, in calls of at most `batch_pictures`."""
        size = self.settings.batch_pictures
        replies = [
            reply(self._scorer(request.media, request.prompts), request)
            for i in range(0, len(media), size)
            for request in [ScoreRequest(media[i : i + size], prompts[i : i + size], self.rewards, id)]
        ]
        metrics.LEAVES_SCORED.labels(self.model).inc(len(media))
        return ScoreReply({name: np.concatenate([r.scores[name] for r in replies]) for name in self.rewards}, id)


def pictures_in(requests: Sequence[npt.NDArray[np.uint8]]) -> int:
    """Size of a batch of requests in pictures. A request alone always fits: it is cut up where it is scored."""
    return sum(len(media) for media in requests) if len(requests) > 1 else 1
