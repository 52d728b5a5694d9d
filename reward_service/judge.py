"""Rewards by a vision-language model that is asked about the pictures, behind an OpenAI-compatible endpoint.

The client is the official one: it retries, waits as long as the server asks for, and knows the answers' types.
"""

import asyncio
import base64
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import openai
import xxhash
from cachetools import LRUCache
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice
from PIL import Image
from pydantic import ConfigDict, Field, ValidationError, create_model

from ..proto.errors import InputError
from ..proto.media import Media, some_frames
from ..proto.prompt import pictures_of
from ..proto.proxies import spare_local_addresses
from ..proto.questions import questions
from ..proto.scoring import NotAnswered, NotScored, checked_token
from ..proto.settings import JudgeSettings
from .comparisons import mean_shares, pairings
from .interface import seen
from .judge_limits import CONNECT_SECONDS, RETRIES

PROBE_RETRIES = 2
RETRIED_STATUSES = (408, 409, 429)
"""Refusals after which the client asks again, as it does after any answer from 500 on."""
TOP = 20
"""Number of tokens whose log-probabilities are asked for: as many as servers give by default."""
SHOWN = 200
"""Characters of an answer that an error message shows."""
COMBINED: dict[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "min": min}
View = tuple[str, ...]
"""What is shown with a question: digests of frames, in order."""
Key = tuple[View, str]
"""What is shown, and the question about it."""


class Judge:
    """Asks the questions about each picture or clip, or about each two, `concurrency` at a time, and keeps the answers.

    Answers are floats from 0 to 1. A question that stays without one is an error: no score is invented.
    """

    def __init__(self, reward: str, settings: JudgeSettings, timeout: float) -> None:
        """An answer may take `timeout` seconds. Raises InputError for a variable without a key."""
        self._reward, self._settings, self._setting = reward, settings, f"rewards.{reward}.judge"
        self._access: dict[str, Any] = {
            "base_url": settings.url,
            "api_key": _api_key(settings.api_key_env, self._setting) or "none",
            "timeout": openai.Timeout(timeout, connect=CONNECT_SECONDS),
            "max_retries": RETRIES,
        }
        self._answers: LRUCache[Key, float] = LRUCache(settings.cached_answers)
        low, high = settings.scale
        fields: dict[str, Any] = {"reasons": (str, ...)} if settings.reasons else {}
        fields["score"] = Annotated[int, Field(ge=low, le=high)], ...
        self._verdict = create_model("Verdict", __config__=ConfigDict(extra="forbid"), **fields)
        spare_local_addresses()

    def probe(self) -> None:
        """Raises InputError if the endpoint isn't there, refuses the key, or doesn't serve the model."""
        url, model = self._settings.url, self._settings.model
        no_list = f"{self._setting}.url is '{url}', where no list of models is; it usually ends with /v1"
        try:
            with openai.OpenAI(**self._access | {"max_retries": PROBE_RETRIES}) as client:
                found = client.models.list()
        except openai.APIStatusError as error:
            raise InputError(f"{self._setting}.url is '{url}', which answers {_short(error)}") from error
        except openai.OpenAIError as error:
            raise InputError(f"{self._setting}.url is '{url}', which doesn't answer: {_short(error)}") from error
        except (ValueError, AttributeError) as error:  # of the client: no JSON, or no object
            raise InputError(no_list) from error
        models: Any = getattr(found, "data", None)
        listed = models if isinstance(models, list) else []
        served = [name for one in listed if isinstance(name := getattr(one, "id", None), str)]
        if not served and models != []:  # a page of another kind
            raise InputError(no_list)
        if model not in served:
            some = ", ".join(served[:TOP]) or "none"
            raise InputError(f"{self._setting}.model is '{model}'; the endpoint serves {some}")

    def __call__(self, media: Media, prompts: Sequence[str]) -> Mapping[str, npt.NDArray[np.float64]]:
        """Raises InputError for a prompt without the fields that the questions name, NotScored for a question
        that is refused or wrongly answered, and NotAnswered if the endpoint gives no answer in all attempts."""
        shown: dict[str, npt.NDArray[np.uint8]] = {}

        def note(frames: npt.NDArray[np.uint8]) -> str:
            digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(frames).data) + str(frames.shape)
            shown[digest] = frames
            return digest

        leaves, sources = [], []
        for picture, prompt in zip(seen(media), prompts, strict=True):
            frames = some_frames(picture, self._settings.frames)
            given = pictures_of(prompt) if self._settings.sources else ()
            sources.append([note(np.asarray(own.fitted(*frames.shape[1:3]))[None]) for own in given])
            leaves.append(note(frames))
        opponents, setting = self._settings.opponents, f"{self._setting}.questions"
        pairs = pairings(prompts, opponents) if opponents else []
        together = pairs if opponents else [(leaf,) for leaf in range(len(leaves))]
        wanted = []
        for first, *others in together:
            view = (*sources[first], leaves[first], *(leaves[other] for other in others))
            wanted.append([(view, one) for one in questions(self._settings.questions, prompts[first], setting)])
        answers = asyncio.run(self._ask_all(dict.fromkeys(chain.from_iterable(wanted)), shown))
        combined = COMBINED[self._settings.combine]
        grades = [combined([answers[key] for key in keys]) for keys in wanted]
        return {self._reward: mean_shares(pairs, grades, len(leaves)) if opponents else np.array(grades)}

    async def _ask_all(self, wanted: Iterable[Key], shown: Mapping[str, npt.NDArray[np.uint8]]) -> dict[Key, float]:
        slots = asyncio.Semaphore(self._settings.concurrency)
        urls = cache(lambda digest: [data_url(frame) for frame in shown[digest]])
        # A client for each batch, because its connections belong to the batch's event loop.
        async with openai.AsyncOpenAI(**self._access) as client:

            async def answer(key: Key) -> tuple[Key, float]:
                view, question = key
                async with slots:
                    if key not in self._answers:
                        pictures = list(chain.from_iterable(map(urls, view)))
                        self._answers[key] = await self._ask(client, pictures, question)
                    return key, self._answers[key]

            return dict(await asyncio.gather(*map(answer, wanted)))

    async def _ask(self, client: openai.AsyncOpenAI, urls: Sequence[str], question: str) -> float:
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [*pictures, {"type": "text", "text": question}]
        unreadable = f"reward '{self._reward}': {self._settings.url} answered with what can't be read"
        try:
            answer: Any = await client.chat.completions.create(
                model=self._settings.model,
                messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
                temperature=0,
                extra_body=self._settings.extra,
                **self._form(),
            )
        except openai.OpenAIError as error:
            reason = f"'{question[:SHOWN]}' has no answer by {self._settings.url}: {_short(error)}"
            failure = NotScored if _refused(error) else NotAnswered
            raise failure(f"reward '{self._reward}': {reason}", final=True) from error
        except ValueError as error:  # of the client: no JSON, whatever its content type says
            raise NotScored(unreadable) from error
        if not isinstance(answer, ChatCompletion) or not answer.choices:  # such as the page of a proxy
            raise NotScored(unreadable)
        try:
            return self._graded(answer.choices[0])
        except ValueError as error:
            reason = f"'{question[:SHOWN]}' was answered {error}"
            raise NotScored(f"reward '{self._reward}': {reason}", final=True) from error

    def _form(self) -> dict[str, Any]:
        """The fields of a request that say how it is to be answered."""
        if self._settings.answer == "yes_no":
            return {"max_completion_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        tokens = {"max_completion_tokens": self._settings.max_tokens}
        if self._settings.answer == "text":
            return tokens
        schema = {"name": "verdict", "strict": True, "schema": self._verdict.model_json_schema()}
        return {**tokens, "response_format": {"type": "json_schema", "json_schema": schema}}

    def _graded(self, choice: Choice) -> float:
        """The answer as a number from 0 to 1. Raises ValueError for one that isn't as asked for."""
        if self._settings.answer == "yes_no":
            tokens = choice.logprobs and choice.logprobs.content
            if not tokens or not tokens[0].top_logprobs:
                raise ValueError("without log-probabilities; the server must give `top_logprobs`, or take 'rubric'")
            return yes_share([(top.token, top.logprob) for top in tokens[0].top_logprobs])
        text, (low, high) = choice.message.content or "", self._settings.scale
        try:
            if self._settings.answer == "text":
                grades = [number_behind(label, text, low, high) for label in self._settings.labels]
            else:
                grades = [self._verdict.model_validate_json(text).score]  # type: ignore[attr-defined]
        except ValueError as error:
            reason = "no such JSON" if isinstance(error, ValidationError) else str(error)
            if choice.finish_reason == "length":
                reason = f"{self._setting}.max_tokens is {self._settings.max_tokens}, too few"
            raise ValueError(f"'{text[:SHOWN]}': {reason}") from error
        return COMBINED[self._settings.combine]([(grade - low) / (high - low) for grade in grades])


def yes_share(top: Sequence[tuple[str, float]]) -> float:
    """P(yes) / (P(yes) + P(no)) of the tokens at the head of an answer, given their log-probabilities.

    Case and blanks don't count: the probabilities of `Yes` and ` yes` are added up. A word that is missing counts as
    impossible. Raises ValueError if both are.
    """
    yes, no = (
        sum(math.exp(logprob) for token, logprob in top if token.strip().casefold() == word) for word in ("yes", "no")
    )
    if not yes + no:
        tokens = ", ".join(repr(token) for token, _ in top[:5])
        raise ValueError(f"neither yes nor no: its likeliest first tokens are {tokens}")
    return yes / (yes + no)


def number_behind(label: str, text: str, low: float, high: float) -> float:
    """The number that stands right behind a label, where it stands last in a text.

    Raises ValueError if there is none, or none from `low` to `high`.
    """
    found = re.findall(re.escape(label) + r"\s*(-?\d+(?:\.\d+)?)", text)
    if not found or not low <= float(found[-1]) <= high:
        raise ValueError(f"no number from {low} to {high} behind '{label}'")
    return float(found[-1])


def data_url(picture: npt.NDArray[np.uint8]) -> str:
    """A picture, uint8 [height, width, 3], as a PNG in a URL."""
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _api_key(variable: str | None, setting: str) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise InputError(f"{setting}.api_key_env is '{variable}', a variable that isn't set here")
    return checked_token(key, f"the variable {variable} of {setting}.api_key_env")


def _refused(error: openai.OpenAIError) -> bool:
    """Whether the endpoint rejected this question, and may well answer others."""
    return (
        isinstance(error, openai.APIStatusError)
        and error.status_code < 500
        and error.status_code not in RETRIED_STATUSES
    )


def _short(error: openai.OpenAIError) -> str:
    """What went wrong: a status with its text, or why there was no answer."""
    if isinstance(error, openai.APIStatusError):
        return f"{error.status_code} {error.response.text[:SHOWN]}"
    return f"{error} ({error.__cause__})" if error.__cause__ else str(error)
