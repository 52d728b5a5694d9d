"""Scores from the reward models of a Ray Serve application. Requests are retried when a replica dies; scores are never
invented.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tenacity
from ray import serve
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from ...proto.errors import InputError
from ...proto.profiling import ProfileOrder
from ...proto.scoring import NotScored, ScoreReply, is_final
from ...proto.usage import NOTHING

SCORE_ATTEMPTS = 6
"""Times a request is sent, with waits of 0.2 to 5 s between them: a replica that died is replaced in that time."""


class ScoringFailed(NotScored):
    """A request got no score, in all its attempts if others could have done better."""


class RewardClient:
    """Sends each request to every model that gives one of the rewards asked for."""

    def __init__(
        self,
        application: str,
        models: Mapping[str, Any],
        timeouts: Mapping[str, float],
        retried: Callable[[str], None] = lambda model: None,
    ) -> None:
        """`models`: model -> its rewards (names, or a mapping by name). `timeouts`: model -> seconds of an attempt.
        `retried` is called with the model at each retry."""
        self._timeouts = timeouts
        self._models = {model: tuple(rewards) for model, rewards in models.items()}
        self._handles = {model: serve.get_deployment_handle(model, application) for model in models}
        self._retried = retried
        self._told: set[tuple[str, str]] = set()

    async def check(self) -> None:
        """Raises InputError or ScoringFailed if a model could not be loaded."""
        for model, handle in self._handles.items():
            failure = await handle.failure.remote()
            if isinstance(failure, NotScored):
                raise ScoringFailed(f"reward model '{model}' can't be loaded: {failure}", final=True)
            if failure is not None:
                raise failure

    async def score(
        self, media: Any, prompts: Sequence[str], rewards: Sequence[str], id: str, order: ProfileOrder | None = None
    ) -> ScoreReply:
        """`media` is `Media`, or an object reference to it, which goes to the replicas as it is.
        With `order`, replicas are profiled.

        Raises ScoringFailed, InputError for media or prompts that a model doesn't take, and ObjectLostError if what
        `media` refers to is no more.
        """
        asked = [model for model, given in self._models.items() if set(given) & set(rewards)]
        replies = await asyncio.gather(*(self._score(model, media, list(prompts), id, order) for model in asked))
        scores: dict[str, npt.NDArray[np.float64]] = {}
        for reply in replies:
            scores.update(reply.scores)
        usages = {model: reply.usage for model, reply in zip(asked, replies, strict=True)}
        own = {name: scores[name] for name in rewards if name in scores}
        reply = ScoreReply(own, id, sum(usages.values(), NOTHING), usages)
        return reply.check(rewards, len(prompts))

    async def _score(
        self, model: str, media: Any, prompts: list[str], id: str, order: ProfileOrder | None
    ) -> ScoreReply:
        try:
            async for attempt in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(SCORE_ATTEMPTS),
                wait=tenacity.wait_exponential_jitter(0.2, max=5, jitter=0.5),
                retry=tenacity.retry_if_exception(_may_pass),
                before_sleep=lambda state: self._again(model, state),
                reraise=True,
            ):
                with attempt:
                    async with asyncio.timeout(self._timeouts[model]):
                        reply = await self._handles[model].score.remote(media, prompts, id, order)
                    if isinstance(reply, (InputError, NotScored)):
                        raise reply
                    if reply.id != id:
                        raise NotScored(f"the reply is to request '{reply.id}'")
        except (RayError, NotScored, TimeoutError) as error:
            if isinstance(cause := cause_of(error), ObjectLostError):
                raise cause from error
            attempts = "" if is_final(error) else f" in {SCORE_ATTEMPTS} attempts"
            reason = str(error) or "it took too long"
            raise ScoringFailed(
                f"reward model '{model}' gave no score for request '{id}'{attempts}: {reason}"
            ) from error
        return reply

    def _again(self, model: str, state: tenacity.RetryCallState) -> None:
        """Count a retry. The first failure of its kind is logged, with its traceback if there is one."""
        self._retried(model)
        error = state.outcome.exception() if state.outcome else None
        reason, _, details = (str(error) or "it took too long").partition("\n")
        if (model, reason) not in self._told:
            self._told.add((model, reason))
            if isinstance(error, NotScored) and details:  # what Ray adds to its errors helps nobody
                reason = f"{reason}\n{details}"
            logging.getLogger(__name__).warning("reward model '%s' is asked again: %s", model, reason)


def cause_of(error: BaseException) -> BaseException:
    """The original exception, raised in another process and passed through any number of others."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may do better: not if the pictures are lost."""
    passing = isinstance(error, (RayError, NotScored, TimeoutError)) and not is_final(error)
    return passing and not isinstance(cause_of(error), ObjectLostError)
