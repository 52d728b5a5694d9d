"""One replica of a reward model: it scores requests of any trees and workers in batches.

A plain class; `cluster/on_ray/reward_deployment.py` makes a Ray Serve deployment of it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..proto.errors import InputError
from ..proto.media import Media, joined
from ..proto.profiling import ProfileOrder, ProfilerScope
from ..proto.scoring import NotAnswered, NotScored, ScoreReply, ScoreRequest
from ..proto.settings import RewardPoolSettings, RewardSettings
from ..proto.tracing import span
from ..proto.usage import Stopwatch
from ..proto.user_code import described
from . import metrics
from .batches import Batches
from .own_code import may_pass
from .scorers import load_scorer, reply_in_calls

Scored = ScoreReply | InputError | NotScored


class _Request(NamedTuple):
    media: Media
    prompts: Sequence[str]
    id: str
    order: ProfileOrder | None


class Replica:
    """Scores batches of requests by the rewards of one model."""

    def __init__(self, model: str, rewards: Mapping[str, RewardSettings], settings: RewardPoolSettings) -> None:
        """Loads the model."""
        self.model, self.rewards, self.settings = model, list(rewards), settings
        name, own = next(iter(rewards.items()))
        self._scorer, self._reads = load_scorer(name, own, settings.threads), own.reads
        size, wait = settings.batch_pictures, settings.batch_wait_seconds
        # What compares the leaves of a tree must not see those of another one with the same prompt.
        alone = settings.deterministic or own.compares
        self._batches = Batches(self._batch, *((1, 0) if alone else (size, wait)))

    async def score(self, media: Media, prompts: Sequence[str], id: str, order: ProfileOrder | None = None) -> Scored:
        """The model's rewards of one request, or why it can't be scored. With `order`, its batch is profiled."""
        try:
            media = media.read(self._reads)
        except InputError as error:
            return error
        return await self._batches.reply(_Request(media, prompts, id, order), len(media))

    async def _batch(self, requests: Sequence[_Request]) -> list[Scored]:
        """The reply to each request, with its share of what the batch has cost."""
        watch, count = Stopwatch("scoring"), sum(len(request.media) for request in requests)
        with span("score", pictures=count, requests=[request.id for request in requests]):
            scored = await self._scored(requests)
        usage = watch.lap()
        metrics.BATCH_PICTURES.labels(self.model).observe(count)
        metrics.SCORING_SECONDS.labels(self.model).observe(usage.seconds)
        return [
            replace(one, usage=usage.share(len(request.media) / count)) if isinstance(one, ScoreReply) else one
            for one, request in zip(scored, requests, strict=True)
        ]

    async def _scored(self, requests: Sequence[_Request]) -> list[Scored]:
        """The reply to each request: one bad request spoils no other."""
        if len(requests) == 1:
            return [await asyncio.to_thread(self._one, *requests)]
        try:
            return await asyncio.to_thread(self._together, requests)
        except NotAnswered as error:  # by a service that has been asked often enough
            metrics.FAILURES.labels(self.model).inc(len(requests))
            return [error] * len(requests)
        except Exception:
            # Find out which of them it was.
            return [await asyncio.to_thread(self._one, request) for request in requests]

    def _one(self, request: _Request) -> Scored:
        try:
            with ProfilerScope(request.order):
                return self._score(request.media, request.prompts, request.id)
        except Exception as error:
            metrics.FAILURES.labels(self.model).inc()
            if isinstance(error, (InputError, NotScored)):
                return error
            return NotScored(described(error), final=not may_pass(error))

    def _together(self, requests: Sequence[_Request]) -> list[Scored]:
        """Requests as one, and its scores dealt out again."""
        media = joined([request.media for request in requests])
        with ProfilerScope(next((request.order for request in requests if request.order), None)):
            every = self._score(media, [prompt for request in requests for prompt in request.prompts], "")
        ends = np.cumsum([len(request.media) for request in requests])[:-1]
        dealt = {name: np.split(values, ends) for name, values in every.scores.items()}
        return [
            ScoreReply({name: parts[i] for name, parts in dealt.items()}, request.id)
            for i, request in enumerate(requests)
        ]

    def _score(self, media: Media, prompts: Sequence[str], id: str) -> ScoreReply:
        """Scores of any number of leaves, in calls of at most `batch_pictures` pictures."""
        request = ScoreRequest(media, prompts, self.rewards, id)
        found = reply_in_calls(self._scorer, request, self.settings.batch_pictures)
        metrics.LEAVES_SCORED.labels(self.model).inc(len(media))
        return found
