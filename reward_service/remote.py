"""Rewards from another service, over the HTTP contract of `branchgrpo serve-rewards` (docs/rewards.md)."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import requests
import tenacity

from ..proto.errors import InputError
from ..proto.media import Media
from ..proto.prompt import fields_of, pictures_of
from ..proto.proxies import spare_local_addresses
from ..proto.scoring import (
    MAX_BYTES,
    MAX_HEADER_BYTES,
    MAX_PICTURES,
    NotAnswered,
    NotScored,
    ScoreReply,
    ScoreRequest,
    checked_token,
)

TOKEN = "BRANCHGRPO_REMOTE_TOKEN"
"""Variable of the environment with the bearer token that is sent."""
KIND = "application/x-safetensors"
REQUEST_ATTEMPTS = 7
CONNECT_SECONDS = 10.0
MAX_WAIT = 10.0
"""Seconds between two attempts; the first wait is about a second, and each is twice the one before."""
OTHER_HEADER_BYTES = 2_000
"""Maximum bytes of a request's header without prompts, fields and pictures."""
PICTURE_HEADER_BYTES = 200
"""Maximum bytes of a prompt's picture in the header, without its name."""
PASSING_STATUSES = (408, 429, 500, 502, 503, 504)
"""Answers after which another attempt may do better."""


class RemoteReward:
    """Asks for one reward, by requests that any service of our own accepts. An attempt takes `timeout` seconds at most,
    all of them `longest(timeout)`; waits in between grow, with jitter.

    A mistake in the request is raised at once, an error that may pass after the last attempt. No score is invented.
    """

    def __init__(self, reward: str, url: str, timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"rewards.{reward}.url is '{url}'; it must begin with http:// or https://")
        self._reward, self._url, self._timeout = reward, f"{url.rstrip('/')}/v1/score", timeout
        spare_local_addresses()
        self._session = requests.Session()
        self._session.headers.update({"Content-Type": KIND, "Accept": KIND})
        if token := checked_token(os.environ.get(TOKEN) or None, TOKEN):
            self._session.headers["Authorization"] = f"Bearer {token}"
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(REQUEST_ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(initial=1, max=MAX_WAIT),
            retry=tenacity.retry_if_exception_type((requests.RequestException, _TransientFailure)),
            reraise=True,
        )

    def __call__(self, media: Media, prompts: Sequence[str]) -> Mapping[str, npt.NDArray[np.float64]]:
        """Raises NotScored, which is final; NotAnswered after the last attempt."""
        return {self._reward: np.concatenate([self._scores(*part) for part in requests_of(media, prompts)])}

    def _scores(self, media: Media, prompts: Sequence[str]) -> npt.NDArray[np.float64]:
        body = ScoreRequest(media, prompts, [self._reward]).to_bytes()
        try:
            reply = self._retrying(self._ask, body)
        except (requests.RequestException, _TransientFailure) as error:
            reason = f"reward '{self._reward}' had no score from {self._url}: {error}"
            raise NotAnswered(reason, final=True) from error
        try:
            return reply.check([self._reward], len(media)).scores[self._reward]
        except ValueError as error:
            raise NotScored(f"{self._url} answered with what is no score: {error}", final=True) from error

    def _ask(self, body: bytes) -> ScoreReply:
        answer = self._session.post(self._url, data=body, timeout=(CONNECT_SECONDS, self._timeout))
        if answer.status_code in PASSING_STATUSES:
            raise _TransientFailure(f"{answer.status_code} {answer.text[:200]}")
        if answer.status_code != 200:
            raise NotScored(
                f"reward '{self._reward}' was refused by {self._url}: {answer.status_code} {answer.text[:200]}",
                final=True,
            )
        try:
            return ScoreReply.from_bytes(answer.content)
        except ValueError as error:  # such as the page of a proxy
            raise _TransientFailure(f"an answer that can't be read: {error}") from error


def requests_of(media: Media, prompts: Sequence[str]) -> Iterator[tuple[Media, Sequence[str]]]:
    """Leaves and their prompts as requests that a service accepts. One that is too large alone is a request all the
    same: a leaf can't be cut, and the service says what it accepts."""
    size = per_request(media, max(len(pictures_of(prompt)) for prompt in prompts))
    begin, header = 0, OTHER_HEADER_BYTES
    for place, prompt in enumerate(prompts):
        own = header_bytes(prompt)
        if place > begin and (place - begin == size or header + own > MAX_HEADER_BYTES):
            yield media[begin:place], prompts[begin:place]
            begin, header = place, OTHER_HEADER_BYTES
        header += own
    yield media[begin:], prompts[begin:]


def header_bytes(prompt: str) -> int:
    """Maximum bytes that a prompt takes in the header of a request, with its fields and its pictures' names."""
    names = [picture.name for picture in pictures_of(prompt)]
    facts = json.dumps([prompt, dict(fields_of(prompt)), names])
    # Twice, because the header is JSON, in which the request's JSON is a string.
    return len(json.dumps(facts)) + sum(PICTURE_HEADER_BYTES + len(json.dumps(name)) for name in names)


def per_request(media: Media, pictures: int = 0) -> int:
    """How many leaves, each with so many `pictures` of its prompt in a frame's size, fit into a request: a service may
    refuse more, and a leaf can't be cut."""
    frame = 0 if media.pictures is None else math.prod(media.pictures.shape[-3:])
    size = media.nbytes // len(media) + pictures * frame
    return max(1, min(MAX_PICTURES // max(media.frames, 1), (MAX_BYTES - MAX_HEADER_BYTES) // max(size, 1)))


def longest(timeout: float) -> float:
    """Seconds that all attempts may take, of `timeout` seconds at most each, with the waits in between."""
    return REQUEST_ATTEMPTS * (CONNECT_SECONDS + timeout + MAX_WAIT)


class _TransientFailure(Exception):
    """An answer that tells of trouble that may pass."""
