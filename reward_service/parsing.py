"""The body of a score request: a form with pictures as files, or the safetensors of a `ScoreRequest`.

Whatever is wrong with it is an HTTPException of a 4xx that says what. No picture is decoded before its size is known
and accepted.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ..proto.media import LATENTS, PICTURES, SOUND, Media, Pictures, joined
from ..proto.prompt import with_fields
from ..proto.safetensors_codec import decode
from ..proto.scoring import MAX_BYTES, MAX_HEADER_BYTES, MAX_PICTURES, ScoreRequest, received_pictures
from ..proto.wav import is_wav, read_wav
from .admission import Slot
from .uploads import opened

MAX_ASPECT = 64
"""The longer side of a picture over the shorter. Scorers scale pictures to a set height, so that a few bytes of a very
wide one would take all memory."""
MIN_RATE, MAX_RATE = 8_000, 768_000
"""Samples of a sound per second. Models hear at a set rate, to which a few bytes at a very low one would grow."""
MAX_PROMPT = 10_000
"""Characters of a prompt."""
MAX_ID = 200
"""Characters of a request's id."""

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
"""An id gets into logs and traces, so it must not start a new line."""
FILES = "a file is a PNG, a JPEG, a .npy of uint8 [height, width, 3] or [n, height, width, 3], or a WAV of 16 bits"

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each malformed form, which are answered


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field("", max_length=MAX_ID, pattern=PRINTABLE)
    prompts: list[Annotated[str, Field(max_length=MAX_PROMPT)]]
    fields: list[dict[str, JsonValue]] | None = None
    pictures: list[list[str]] | None = None
    rewards: list[str]


@dataclass(frozen=True)
class Limits:
    """What a request, and all requests together, may take."""

    pictures: int = MAX_PICTURES
    """Pictures in a request."""
    bytes: int = MAX_BYTES
    """Bytes of a body, and of its pictures as uint8 once decoded."""
    pixels: int = 4096 * 4096
    """Pixels in a picture."""
    requests: int = 32
    """Requests that are worked on at once."""
    held: int = 512 * 2**20
    """Bytes that their bodies and pictures hold together."""
    upload_seconds: float = 30.0
    """Seconds until a body must be there."""
    seconds: float = 300.0
    """Seconds until a request must be scored."""

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

    def check_size(self, media: Media) -> None:
        """Raises HTTPException for sounds or latents that are too many, leaves that are too large altogether, or sounds
        of a rate that can't be scored."""
        if media.sound is not None and not MIN_RATE <= media.sample_rate <= MAX_RATE:
            raise HTTPException(422, f"sample_rate is {media.sample_rate}; it must be {MIN_RATE} to {MAX_RATE}")
        if media.arrays().keys() != {PICTURES} and len(media) > self.pictures:
            raise HTTPException(413, f"media holds {len(media)} {media.kind}s; at most {self.pictures} are accepted")
        if media.nbytes > self.bytes:
            raise HTTPException(413, f"media takes {media.nbytes} bytes; at most {self.bytes} are accepted")


async def read_form(body: Request, max_files: int, max_fields: int) -> FormData:
    """Read a body as a form. Raises HTTPException for a form that is too large or malformed."""
    try:
        return await body.form(max_files=max_files, max_fields=max_fields)
    except HTTPException as error:
        # Starlette has a 400 for all that it refuses, and tells by its texts alone what was too large.
        too_large = error.detail.startswith(("Too many", "Part exceeded"))
        raise HTTPException(413 if too_large else error.status_code, error.detail) from error
    except UnicodeError as error:  # of the charset that the Content-Type names
        raise HTTPException(400, "the form's text is not in the charset that its Content-Type names") from error


def from_form(form: FormData, rewards: Sequence[str], limits: Limits, slot: Slot) -> ScoreRequest:
    """The score request in a form, for all `rewards` if it names none.

    Raises HTTPException: 413 beyond the `limits`, 422 for fields that don't fit. `slot` reserves what pictures take.
    """
    if unknown := set(form) - {"media", "prompt", "reward", "id"}:
        raise HTTPException(422, f"unknown field {min(unknown)[:80]!r}; there are media, prompt, reward and id")
    parts = {name: form.getlist(name) for name in ("media", "prompt", "reward", "id")}
    files = [part.file for part in parts["media"] if isinstance(part, UploadFile)]
    if len(files) < len(parts.pop("media")):
        raise HTTPException(422, f"media is text, not a file; {FILES}")
    for name, texts in parts.items():
        if any(isinstance(text, UploadFile) for text in texts):
            raise HTTPException(422, f"{name} is a file; it must be text")
    if len(ids := parts["id"]) > 1:
        raise HTTPException(422, f"id was given {len(ids)} times; at most one is accepted")
    named = {"prompts": parts["prompt"], "rewards": parts["reward"] or list(rewards), "id": ids[0] if ids else ""}
    facts = _facts(json.dumps(named), rewards)
    if not files:
        raise HTTPException(422, "media is empty; a request holds at least one picture")
    return _request(_media(files, limits, slot), facts, limits)


def from_bytes(data: bytes, rewards: Sequence[str], limits: Limits, slot: Slot) -> ScoreRequest:
    """The score request in the bytes of a safetensors body, whose size `slot` reserves.

    Raises HTTPException: 413 beyond the `limits`, 400 for anything but safetensors, 422 for contents that don't fit.
    """
    if (header_bytes := int.from_bytes(data[:8], "little")) > MAX_HEADER_BYTES and len(data) > MAX_HEADER_BYTES:
        raise HTTPException(413, f"the header takes {header_bytes} bytes; at most {MAX_HEADER_BYTES} are accepted")
    slot.reserve(len(data))
    with _decoding(400, "the body", "it must be the safetensors of a score request"):
        arrays, header = decode(data)
    if not {PICTURES, SOUND, LATENTS} & arrays.keys() or "request" not in header:
        there = ", ".join([*arrays, *header])[:80]
        raise HTTPException(
            422,
            f"the body holds {there!r}; it must have a tensor 'media', 'sound' or 'latents' and a header 'request'",
        )
    facts = _facts(header["request"], rewards)
    try:
        media = Media.from_arrays(arrays, header)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return _request(media, facts, limits, arrays)


def _facts(text: str, rewards: Sequence[str]) -> _Facts:
    """The facts in JSON `text`; raises HTTPException for other types, unknown rewards and blank prompts."""
    try:
        facts = _Facts.model_validate_json(text)
    except ValidationError as error:
        raise HTTPException(422, sentence(error.errors())) from error
    for name in facts.rewards:
        if name not in rewards:
            raise HTTPException(422, f"unknown reward {name[:80]!r} in rewards; there are {', '.join(rewards)}")
    for place, prompt in enumerate(facts.prompts):
        if not prompt.strip():
            raise HTTPException(422, f"prompts[{place}] is {prompt[:80]!r}; a prompt must not be blank")
    return facts


def _request(
    media: Media, facts: _Facts, limits: Limits, arrays: Mapping[str, np.ndarray] = MappingProxyType({})
) -> ScoreRequest:
    try:
        pictures = received_pictures(arrays, facts.pictures)
        prompts = with_fields(facts.prompts, facts.fields, pictures)
        request = ScoreRequest(media=media, prompts=prompts, rewards=facts.rewards, id=facts.id)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    if media.pictures is not None:
        limits.check(len(media) * media.frames, *media.pictures.shape[-3:-1])
    limits.check_size(media)
    for picture in chain.from_iterable(pictures or ()):
        limits.check(1, *picture.pixels().shape[:-1])
    return request


def _media(files: Sequence[BinaryIO], limits: Limits, slot: Slot) -> Media:
    """What `files` hold: sounds if the first one is a WAV, otherwise pictures."""
    if not is_wav(files[0]):
        return Media(_pictures(files, limits, slot))
    sounds = []
    for number, file in enumerate(files):
        with _decoding(422, f"media[{number}]", FILES):
            sounds.append(read_wav(file))
        limits.check_size(sounds[-1])
        slot.reserve(sounds[-1].nbytes)
    try:
        return joined(sounds)
    except ValueError as error:
        raise HTTPException(422, f"media must be sounds of one length and rate: {error}") from error


def _pictures(files: Sequence[BinaryIO], limits: Limits, slot: Slot) -> Pictures:
    """The pictures of `files`, uint8 [n, height, width, 3]; none is decoded before its size is known and accepted."""
    read: list[Pictures] = []
    for number, file in enumerate(files):
        with _decoding(422, f"media[{number}]", FILES):
            (count, height, width), pixels = opened(file)
        if read and (height, width) != read[0].shape[1:3]:
            first = " x ".join(map(str, read[0].shape[1:3]))
            raise HTTPException(
                422, f"media[{number}] is {height} x {width} pixels; it must be {first}, the size of media[0]"
            )
        limits.check(sum(map(len, read)) + count, height, width)
        slot.reserve(count * height * width * 3)
        with _decoding(422, f"media[{number}]", FILES):
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


def sentence(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors: where, what was given, what would be accepted."""
    first = errors[0]
    where = ".".join(str(part)[:80] for part in first["loc"]) or "request"
    return f"{where} is {str(first['input'])[:80]!r}: {first['msg']}"
