"""Scores over HTTP: a FastAPI application around one asynchronous function from request to reply.

Two forms of request, one of which needs nothing but curl: pictures as files of a form, answered in JSON; or the
safetensors bytes of a `ScoreRequest`, answered with those of a `ScoreReply`. Whatever is wrong with a request is
answered by a 4xx that says what, and a score that could not be made by a 503: a score is never made up. It knows
nothing of where the scores come from.

Bodies and decoded pictures are counted as they come, so that all requests together hold `max_held` bytes of them; with
the copies that decoders make, memory grows by up to five times that.
"""

import asyncio
import json
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from ..proto.arrays import decode
from ..proto.errors import InputError
from ..proto.prompts import with_fields
from ..proto.scoring import MOST_BYTES, MOST_HEADER_BYTES, MOST_PICTURES, ScoreReply, ScoreRequest
from .gate import RETRY, Gate, Place
from .uploads import Pictures, opened

Read = TypeVar("Read")
FORM = "multipart/form-data"
BINARY = ("application/x-safetensors", "application/octet-stream")
MAX_ASPECT = 64
"""The longer side of a picture over the shorter. Scorers scale pictures to a set height, so that a few bytes of a very
wide one would take all memory."""
MAX_PROMPT = 10_000
"""Characters of a prompt."""
MAX_ID = 200
"""Characters of a request's id."""

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
"""An id gets into logs and traces, where it must not begin a line of its own."""

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each malformed form, which are answered

_FILES = "a file is a PNG, a JPEG or a .npy of uint8 [height, width, 3] or [n, height, width, 3]"


class Scored(BaseModel):
    """The scores of a request's pictures."""

    id: str = Field(description="The request's `id`, or an empty string.")
    scores: dict[str, list[float]] = Field(description="By reward, a finite number per picture, in their order.")


class Refusal(BaseModel):
    """Why there is no score."""

    error: str = Field(description="One sentence: the field, the value given and what would be accepted.")


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field("", max_length=MAX_ID, pattern=PRINTABLE)
    prompts: list[Annotated[str, Field(max_length=MAX_PROMPT)]]
    fields: list[dict[str, JsonValue]] | None = None
    rewards: list[str]


@dataclass(frozen=True)
class _Limits:
    pictures: int
    bytes: int
    pixels: int

    def check(self, count: int, height: int, width: int) -> None:
        """Raises HTTPException for a batch that is too large, or of pictures of a shape that can't be scored."""
        size = f"media holds pictures of {height} x {width} pixels"
        if not 0 < max(height, width) <= MAX_ASPECT * min(height, width):
            raise HTTPException(422, f"{size}; a side must be 1 to {MAX_ASPECT} times as long as the other")
        if height * width > self.pixels:
            raise HTTPException(413, f"{size}; at most {self.pixels} pixels per picture are accepted")
        if count > self.pictures:
            raise HTTPException(413, f"media holds {count} pictures or more; at most {self.pictures} are accepted")
        if (total := count * height * width * 3) > self.bytes:
            raise HTTPException(413, f"media takes {total} bytes or more as uint8; at most {self.bytes} are accepted")


def face(
    score: Callable[[ScoreRequest], Awaitable[ScoreReply]],
    rewards: Sequence[str],
    *,
    max_pictures: int = MOST_PICTURES,
    max_bytes: int = MOST_BYTES,
    max_pixels: int = 4096 * 4096,
    max_requests: int = 32,
    max_held: int = 512 * 2**20,
    max_upload_seconds: float = 30.0,
    max_seconds: float = 300.0,
    token: str | None = None,
) -> FastAPI:
    """The application that answers `POST /v1/score` by `score`, `GET /v1/rewards` and `GET /healthz`.

    `rewards` are those that `score` gives. `max_pictures` are accepted per request and `max_pixels` per picture;
    `max_bytes` is the most that a body may have, and the most that its pictures may take as uint8 once decoded. What
    `score` raises, or a reply of its that is not whole and finite, or not there after `max_seconds`, is answered by a
    503; a body that is not there after `max_upload_seconds`, by a 408. With a `token` all but the health check want it.
    Of more than `max_requests` at once, or of those whose bodies and pictures take more than `max_held` bytes together,
    the rest get a 429.
    """
    limits = _Limits(pictures=max_pictures, bytes=max_bytes, pixels=max_pixels)
    app = FastAPIOffline(
        redoc_url=None,
        title="Reward service",
        version="1",
        description="Scores pictures by how well they do their prompts.",
    )
    gate = Gate(token, max_requests, max_held)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.post(
        "/v1/score",
        summary="Score pictures",
        dependencies=[Depends(gate.known)],
        description=_description(limits),
        response_model=Scored,
        responses={200: _ANSWER, **{status: {"model": Refusal, "description": why} for status, why in _WHY.items()}},
        openapi_extra={"requestBody": _request_body(rewards, limits)},
    )
    async def score_pictures(request: Request, place: Annotated[Place, Depends(gate.room)]) -> Response:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        body = _bounded(request, limits.bytes, place)
        if kind == FORM:
            max_fields = max_pictures + len(rewards) + 1
            form = await _in_time(_form(body, max_files=max_pictures, max_fields=max_fields), max_upload_seconds)
            try:
                asked = await asyncio.to_thread(_from_form, form, rewards, limits, place)
            finally:
                await form.close()
        elif kind in BINARY:
            data = await _in_time(body.body(), max_upload_seconds)
            asked = await asyncio.to_thread(_from_bytes, data, rewards, limits, place)
        else:
            raise HTTPException(415, f"Content-Type is '{kind[:80]}'; accepted are {', '.join((FORM, *BINARY))}")
        reply = await _scored(score, asked, max_seconds)
        accept = request.headers.get("accept", "")
        if kind == FORM or ("application/json" in accept and kind not in accept):
            scores = {name: values.tolist() for name, values in reply.scores.items()}
            return JSONResponse(Scored(id=reply.id, scores=scores).model_dump())
        return Response(reply.to_bytes(), media_type=kind)

    @app.get(
        "/v1/rewards",
        summary="The rewards served",
        dependencies=[Depends(gate.known)],
        responses={401: {"model": Refusal, "description": _WHY[401]}},
    )
    async def rewards_served() -> list[str]:
        return list(rewards)

    @app.get("/healthz", summary="Whether the application answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _bounded(request: Request, most: int, place: Place) -> Request:
    """`request`, whose body is refused once it has more than `most` bytes, whatever its Content-Length says."""
    refusal = HTTPException(413, f"the body has more than {most} bytes, which is the most that is accepted")
    try:
        claimed = int(request.headers.get("content-length", "0"))
    except ValueError as error:
        raise HTTPException(400, "Content-Length is not a number of bytes") from error
    if claimed > most:
        raise refusal
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the body is not whole: the client left")
        seen += len(message.get("body", b""))
        if seen > most:
            raise refusal
        place.take(len(message.get("body", b"")))
        await asyncio.sleep(0)  # where the body is there already, all of it would be parsed before anything else
        return message

    return Request(request.scope, receive)


async def _in_time(reading: Coroutine[Any, Any, Read], seconds: float) -> Read:
    """What `reading` the body gives; a client that sends it drop by drop holds no place for ever."""
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except TimeoutError as error:
        raise HTTPException(408, f"the body was not whole after {seconds:g} seconds") from error


async def _scored(
    score: Callable[[ScoreRequest], Awaitable[ScoreReply]], asked: ScoreRequest, max_seconds: float
) -> ScoreReply:
    try:
        async with asyncio.timeout(max_seconds):
            reply = await score(asked)
        return reply.check(asked.rewards, len(asked.media))
    except TimeoutError as error:
        raise HTTPException(503, f"no score was made in {max_seconds:g} seconds; try again", RETRY) from error
    except InputError as error:  # what a model says of media and prompts that it doesn't take
        raise HTTPException(422, str(error)) from error
    except Exception as error:  # the request is sound, so that whatever is raised here is the service's fault
        # What went wrong may tell of paths, addresses and keys: it is for those who read the log.
        reference = secrets.token_hex(4)
        logging.getLogger(__name__).exception("no score was made (%s)", reference)
        why = f"no score was made, by the service's fault; its log has the cause under {reference}"
        raise HTTPException(503, why, RETRY) from error


async def _form(body: Request, max_files: int, max_fields: int) -> FormData:
    try:
        return await body.form(max_files=max_files, max_fields=max_fields)
    except HTTPException as error:
        too_large = error.detail.startswith(("Too many", "Part exceeded"))
        raise HTTPException(413 if too_large else error.status_code, error.detail) from error
    except UnicodeError as error:  # of the charset that the Content-Type names
        raise HTTPException(400, "the form's text is not in the charset that its Content-Type names") from error


def _from_form(form: FormData, rewards: Sequence[str], limits: _Limits, place: Place) -> ScoreRequest:
    if unknown := set(form) - {"media", "prompt", "reward", "id"}:
        raise HTTPException(422, f"unknown field {min(unknown)[:80]!r}; there are media, prompt, reward and id")
    parts = {name: form.getlist(name) for name in ("media", "prompt", "reward", "id")}
    files = [part.file for part in parts["media"] if isinstance(part, UploadFile)]
    if len(files) < len(parts.pop("media")):
        raise HTTPException(422, f"media is text, not a file; {_FILES}")
    for name, texts in parts.items():
        if any(isinstance(text, UploadFile) for text in texts):
            raise HTTPException(422, f"{name} is a file; it must be text")
    if len(ids := parts["id"]) > 1:
        raise HTTPException(422, f"id was given {len(ids)} times; at most one is accepted")
    named = {"prompts": parts["prompt"], "rewards": parts["reward"] or list(rewards), "id": ids[0] if ids else ""}
    facts = _facts(json.dumps(named), rewards)
    if not files:
        raise HTTPException(422, "media is empty; a request holds at least one picture")
    return _request(_pictures(files, limits, place), facts, limits)


def _from_bytes(data: bytes, rewards: Sequence[str], limits: _Limits, place: Place) -> ScoreRequest:
    if (header_bytes := int.from_bytes(data[:8], "little")) > MOST_HEADER_BYTES and len(data) > MOST_HEADER_BYTES:
        raise HTTPException(413, f"the header takes {header_bytes} bytes; at most {MOST_HEADER_BYTES} are accepted")
    place.take(len(data))
    with _decoding(400, "the body", "it must be the safetensors of a score request"):
        arrays, header = decode(data)
    if "media" not in arrays or "request" not in header:
        there = ", ".join([*arrays, *header])[:80]
        raise HTTPException(422, f"the body holds {there!r}; it must have a tensor 'media' and a header 'request'")
    facts = _facts(header["request"], rewards)
    return _request(arrays["media"], facts, limits)


def _facts(text: str, rewards: Sequence[str]) -> _Facts:
    """The facts in JSON `text`; raises HTTPException for other types, unknown rewards and blank prompts."""
    try:
        facts = _Facts.model_validate_json(text)
    except ValidationError as error:
        raise HTTPException(422, _sentence(error.errors())) from error
    for name in facts.rewards:
        if name not in rewards:
            raise HTTPException(422, f"unknown reward {name[:80]!r} in rewards; there are {', '.join(rewards)}")
    for place, prompt in enumerate(facts.prompts):
        if not prompt.strip():
            raise HTTPException(422, f"prompts[{place}] is {prompt[:80]!r}; a prompt must not be blank")
    return facts


def _request(media: Pictures, facts: _Facts, limits: _Limits) -> ScoreRequest:
    try:
        prompts = with_fields(facts.prompts, facts.fields)
        request = ScoreRequest(media=media, prompts=prompts, rewards=facts.rewards, id=facts.id)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    limits.check(math.prod(media.shape[:-3]), *media.shape[-3:-1])
    return request


def _pictures(files: Sequence[BinaryIO], limits: _Limits, place: Place) -> Pictures:
    """The pictures of `files`, uint8 [n, height, width, 3]; none is decoded before its size is known and accepted."""
    read: list[Pictures] = []
    for number, file in enumerate(files):
        with _decoding(422, f"media[{number}]", _FILES):
            (count, height, width), pixels = opened(file)
        if read and (height, width) != read[0].shape[1:3]:
            first = " x ".join(map(str, read[0].shape[1:3]))
            raise HTTPException(
                422, f"media[{number}] is {height} x {width} pixels; it must be {first}, the size of media[0]"
            )
        limits.check(sum(map(len, read)) + count, height, width)
        place.take(count * height * width * 3)
        with _decoding(422, f"media[{number}]", _FILES):
            read.append(pixels())
    return read[0] if len(read) == 1 else np.concatenate(read)


@contextmanager
def _decoding(status: int, what: str, accepted: str) -> Iterator[None]:
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HTTPException(413, f"{what} has too many pixels: {error}") from error
    except Exception as error:  # on bytes made to harm, decoders raise anything from KeyError to MemoryError
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise HTTPException(status, f"{what} can't be used ({why}); {accepted}") from error


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(Refusal(error=error.detail).model_dump(), error.status_code, headers=error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return JSONResponse(Refusal(error=_sentence(error.errors())).model_dump(), 422)


def _sentence(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors: where, what was given, what would be accepted."""
    first = errors[0]
    where = ".".join(str(part)[:80] for part in first["loc"]) or "request"
    return f"{where} is {str(first['input'])[:80]!r}: {first['msg']}"


_WHY = {
    400: "The body is not what its Content-Type says: a malformed form or safetensors.",
    401: "There is no bearer token, or a wrong one.",
    408: "The body was not whole in time.",
    413: "Too many bytes, pictures or pixels.",
    415: f"The Content-Type is none of {', '.join((FORM, *BINARY))}.",
    422: "What the body holds can't be scored: not a picture, a wrong shape, an unknown reward, too few prompts.",
    429: "Too many requests, or bytes of them, at once. Retry-After says when to try again.",
    503: "The reward models failed, or took too long; no score was made.",
}
_BYTES: dict[str, Any] = {"type": "string", "format": "binary"}
_ANSWER: dict[str, Any] = {
    "description": "The scores: of a form in JSON, of safetensors in safetensors unless `Accept: application/json`.",
    "content": {kind: {"schema": {**_BYTES, "description": "`ScoreReply.to_bytes()`"}} for kind in BINARY},
}


def _description(limits: _Limits) -> str:
    return f"""Scores pictures of one size by the rewards asked for.

    curl http://localhost:8000/v1/score \\
      -F media=@open.png --form-string 'prompt=a shop sign that says "OPEN"' \\
      -F media=@042.png --form-string prompt=042 \\
      -F reward=ocr -F id=first

answers `{{"id": "first", "scores": {{"ocr": [1.0, 0.667]}}}}`. The n-th `prompt` belongs to the n-th picture.

A program that has the pictures as an array sends `ScoreRequest.to_bytes()` instead: safetensors with a tensor `media`,
uint8 [n, height, width, 3], and a header `request`, the JSON of `{{"id": "", "prompts": [...], "rewards": [...]}}`.

At most {limits.pictures} pictures, {limits.pixels} pixels per picture, and {limits.bytes} bytes, both of the body and
of the decoded pictures (3 per pixel), are accepted."""


def _request_body(rewards: Sequence[str], limits: _Limits) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    properties: dict[str, Any] = {
        "media": {
            "type": "array",
            "items": _BYTES,
            "minItems": 1,
            "maxItems": limits.pictures,
            "description": f"The pictures, all of one size; {_FILES}. Transparency is dropped.",
        },
        "prompt": {
            "type": "array",
            "items": {**text, "maxLength": MAX_PROMPT},
            "minItems": 1,
            "description": "One per picture, in their order.",
        },
        "reward": {
            "type": "array",
            "items": {"type": "string", "enum": list(rewards)},
            "description": "The rewards asked for; all if left out.",
        },
        "id": {**text, "maxLength": MAX_ID, "pattern": PRINTABLE, "description": "Comes back with the scores."},
    }
    form = {
        "schema": {"type": "object", "required": ["media", "prompt"], "properties": properties},
        "encoding": {name: {"style": "form", "explode": True} for name in ("prompt", "reward")},
    }
    binary = {"schema": {**_BYTES, "description": "`ScoreRequest.to_bytes()`"}}
    return {"required": True, "content": {FORM: form, **dict.fromkeys(BINARY, binary)}}
