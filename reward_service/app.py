"""Scores over HTTP: a FastAPI application around one asynchronous function from request to reply.

Two forms of request, one of which needs nothing but curl: pictures as files of a form, answered in JSON; or the
safetensors bytes of a `ScoreRequest`, answered with those of a `ScoreReply`. Whatever is wrong with a request is
answered by a 4xx that says what, and a score that could not be made by a 503: a score is never made up. It knows
nothing of where the scores come from.

Bodies and decoded pictures are counted as they come, so that all requests together hold `limits.held` bytes of them;
with the copies that decoders make, memory grows by up to five times that.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import Message

from ..proto.errors import InputError
from ..proto.scoring import ScoreReply, ScoreRequest
from .admission import RETRY, Admission, Slot
from .openapi import ANSWER, BINARY, FORM, REFUSALS, Refusal, ScoresJson, description, request_body
from .parsing import Limits, from_bytes, from_form, read_form, sentence

Read = TypeVar("Read")


def create_app(
    score: Callable[[ScoreRequest], Awaitable[ScoreReply]],
    rewards: Sequence[str],
    limits: Limits = Limits(),  # noqa: B008  # it is frozen
    *,
    token: str | None = None,
) -> FastAPI:
    """The application that answers `POST /v1/score` by `score`, `GET /v1/rewards` and `GET /healthz`.

    `rewards` are those that `score` gives. A request that is larger than `limits` allow gets a 413, one whose body is
    late a 408, one for which there is no room a 429. What `score` raises, or a reply of its that is not whole and
    finite, or late, is answered by a 503. With a `token` all but the health check and the documentation
    require it.
    """
    app = FastAPIOffline(
        redoc_url=None,
        title="Reward service",
        version="1",
        description="Scores pictures by how well they do their prompts.",
    )
    admission = Admission(token, limits.requests, limits.held)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.post(
        "/v1/score",
        summary="Score pictures",
        dependencies=[Depends(admission.known)],
        description=description(limits),
        response_model=ScoresJson,
        responses={200: ANSWER, **{status: {"model": Refusal, "description": why} for status, why in REFUSALS.items()}},
        openapi_extra={"requestBody": request_body(rewards, limits)},
    )
    async def score_pictures(request: Request, slot: Annotated[Slot, Depends(admission.room)]) -> Response:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        body = _bounded(request, limits.bytes, slot)
        if kind == FORM:
            max_fields = limits.pictures + len(rewards) + 1
            form = await _in_time(read_form(body, limits.pictures, max_fields), limits.upload_seconds)
            try:
                asked = await asyncio.to_thread(from_form, form, rewards, limits, slot)
            finally:
                await form.close()
        elif kind in BINARY:
            data = await _in_time(body.body(), limits.upload_seconds)
            asked = await asyncio.to_thread(from_bytes, data, rewards, limits, slot)
        else:
            raise HTTPException(415, f"Content-Type is '{kind[:80]}'; accepted are {', '.join((FORM, *BINARY))}")
        reply = await _scored(score, asked, limits.seconds)
        accept = request.headers.get("accept", "")
        if kind == FORM or ("application/json" in accept and kind not in accept):
            scores = {name: values.tolist() for name, values in reply.scores.items()}
            return JSONResponse(ScoresJson(id=reply.id, scores=scores).model_dump())
        return Response(reply.to_bytes(), media_type=kind)

    @app.get(
        "/v1/rewards",
        summary="The rewards served",
        dependencies=[Depends(admission.known)],
        responses={401: {"model": Refusal, "description": REFUSALS[401]}},
    )
    async def rewards_served() -> list[str]:
        return list(rewards)

    @app.get("/healthz", summary="Whether the application answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _bounded(request: Request, most: int, slot: Slot) -> Request:
    """`request`, whose body is refused once it has more than `most` bytes, whatever its Content-Length says."""
    refusal = HTTPException(413, f"the body has more than {most} bytes, the maximum that is accepted")
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
        slot.reserve(len(message.get("body", b"")))
        await asyncio.sleep(0)  # where the body is there already, all of it would be parsed before anything else
        return message

    return Request(request.scope, receive)


async def _in_time(reading: Coroutine[Any, Any, Read], seconds: float) -> Read:
    """The result of `reading` the body, with a time limit for slow clients."""
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


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(Refusal(error=error.detail).model_dump(), error.status_code, headers=error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return JSONResponse(Refusal(error=sentence(error.errors())).model_dump(), 422)
