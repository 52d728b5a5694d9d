"""The OpenAPI description of the scoring endpoint: texts and schemas."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from .parsing import FILES, MAX_ID, MAX_PROMPT, PRINTABLE, Limits

FORM = "multipart/form-data"
BINARY = ("application/x-safetensors", "application/octet-stream")


class ScoresJson(BaseModel):
    """The scores of a request's pictures."""

    id: str = Field(description="The request's `id`, or an empty string.")
    scores: dict[str, list[float]] = Field(description="By reward, a finite number per picture, in their order.")


class Refusal(BaseModel):
    """Why there is no score."""

    error: str = Field(description="One sentence: the field, the value given and what would be accepted.")


REFUSALS = {
    400: "The body is not what its Content-Type says: a malformed form or safetensors.",
    401: "There is no bearer token, or a wrong one.",
    408: "The body was not whole in time.",
    413: "Too many bytes, pictures or pixels.",
    415: f"The Content-Type is none of {', '.join((FORM, *BINARY))}.",
    422: "What the body holds can't be scored: not a picture, a wrong shape, an unknown reward, too few prompts.",
    429: "Too many requests, or bytes of them, at once. Retry-After says when to try again.",
    503: "The reward models failed, or took too long; no score was made.",
}
BYTES: dict[str, Any] = {"type": "string", "format": "binary"}
ANSWER: dict[str, Any] = {
    "description": "The scores: of a form in JSON, of safetensors in safetensors unless `Accept: application/json`.",
    "content": {kind: {"schema": {**BYTES, "description": "`ScoreReply.to_bytes()`"}} for kind in BINARY},
}


def description(limits: Limits) -> str:
    """What the document says of the whole service, as Markdown."""
    return f"""Scores pictures of one size by the rewards asked for.

    curl http://localhost:8000/v1/score \\
      -F media=@open.png --form-string 'prompt=a shop sign that says "OPEN"' \\
      -F media=@042.png --form-string prompt=042 \\
      -F reward=ocr -F id=first

answers `{{"id": "first", "scores": {{"ocr": [1.0, 0.667]}}}}`. The n-th `prompt` belongs to the n-th picture.

A program that has the pictures as an array sends `ScoreRequest.to_bytes()` instead: safetensors with a tensor `media`,
uint8 [n, height, width, 3], and a header `request`, the JSON of `{{"id": "", "prompts": [...], "rewards": [...]}}`.

Sounds come as WAV files of 16 bits in a form, or as a tensor `sound`, int16 [n, channels, samples], with the texts
`sample_rate` and, beside clips in `media`, `frame_rate` in the header. Rewards of latents read a tensor `latents`,
float32 [n, ...], which may come alone.

At most {limits.pictures} pictures or sounds, {limits.pixels} pixels per picture, and {limits.bytes} bytes, both of the
body and of what is decoded (3 per pixel, 2 per sample and channel), are accepted."""


def request_body(rewards: Sequence[str], limits: Limits) -> dict[str, Any]:
    """The document's part on bodies of score requests: forms and safetensors, with their limits."""
    text: dict[str, Any] = {"type": "string"}
    properties: dict[str, Any] = {
        "media": {
            "type": "array",
            "items": BYTES,
            "minItems": 1,
            "maxItems": limits.pictures,
            "description": f"The pictures, all of one size; {FILES}. Transparency is dropped.",
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
    binary = {"schema": {**BYTES, "description": "`ScoreRequest.to_bytes()`"}}
    return {"required": True, "content": {FORM: form, **dict.fromkeys(BINARY, binary)}}
