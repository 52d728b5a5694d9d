"""Score requests and replies: what reward models are sent, and what they return."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, RunFailed
from .media import LATENTS, PICTURES, SOUND, Media, Pictures
from .pictures import Picture
from .prompt import fields_of, pictures_of, with_fields
from .safetensors_codec import decode, encode
from .usage import NOTHING, Usage

MAX_PICTURES = 256
"""Maximum pictures of a request over HTTP, counting the frames of clips, unless a service is set to accept more."""
MAX_BYTES = 64 * 2**20
"""Maximum bytes of the body of such a request, and of its pictures as uint8."""
MAX_HEADER_BYTES = 4 * 2**20
"""Maximum bytes of the JSON header of safetensors, which holds prompts and their fields. Parsing it blocks the
server."""


PICTURE = "picture."
"""Prefix of the names of prompts' pictures among the tensors of a request."""


class NotScored(RunFailed):
    """No score could be made of a request."""

    def __init__(self, reason: str, final: bool = False) -> None:
        """`final`: another attempt would do no better."""
        super().__init__(reason, final)
        self.reason, self.final = reason, final

    def __str__(self) -> str:
        return self.reason


class NotAnswered(NotScored):
    """A service gave no answer, in all attempts at asking it: it won't answer other requests either."""


def is_final(error: BaseException) -> bool:
    """Whether another attempt would end in the same error."""
    return isinstance(error, InputError) or (isinstance(error, NotScored) and error.final)


def checked_token(token: str | None, source: str) -> str | None:
    """A bearer token, or None. Raises InputError, naming its `source`, for text that no header can carry."""
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise InputError(f"{source} must hold the token alone: letters of English, digits and signs, without blanks")
    return token


@dataclass(frozen=True)
class ScoreRequest:
    """Media to be scored by some rewards.

    Raises ValueError for media whose number is not that of the prompts.
    """

    media: Media
    prompts: Sequence[str]
    """Some may be a `Prompt` with fields."""
    rewards: Sequence[str]
    """Names of the rewards asked for."""
    id: str = ""

    def __post_init__(self) -> None:
        if len(self.media) != len(self.prompts):
            raise ValueError(f"{len(self.media)} media came with {len(self.prompts)} prompts")
        if not len(self.media):
            raise ValueError("media is empty; a request holds at least one picture")
        if not self.rewards:
            raise ValueError("rewards is empty; a request asks for at least one")

    def to_bytes(self) -> bytes:
        """The request as safetensors, from which `from_bytes` makes it again, with the prompts' pictures in the size of
        the media."""
        facts: dict[str, Any] = {"id": self.id, "prompts": list(self.prompts), "rewards": list(self.rewards)}
        pictures = {picture for prompt in self.prompts for picture in pictures_of(prompt)}
        if pictures:
            facts["pictures"] = [[picture.name for picture in pictures_of(prompt)] for prompt in self.prompts]
        fitted = {PICTURE + one.name: self._in_size(one) for one in pictures}
        if any(fields := [dict(fields_of(prompt)) for prompt in self.prompts]):
            facts["fields"] = fields
        return encode({**self.media.arrays(), **fitted}, {"request": json.dumps(facts), **self.media.facts()})

    def _in_size(self, picture: Picture) -> Pictures:
        """A prompt's picture in the size of the media; beside a sound in its own."""
        pictures = self.media.pictures
        return picture.pixels() if pictures is None else np.asarray(picture.fitted(*pictures.shape[-3:-1]))

    @classmethod
    def from_bytes(cls, data: bytes) -> "ScoreRequest":
        """The request in safetensors bytes. Raises ValueError for bytes that aren't a valid request (JSONDecodeError is
        one), TypeError and KeyError for fields that are wrong or missing."""
        arrays, header = decode(data)
        if not {PICTURES, SOUND, LATENTS} & arrays.keys() or "request" not in header:
            raise ValueError("not a score request: 'media', 'sound' and 'latents', or 'request' is missing")
        facts = json.loads(header["request"])
        pictures = received_pictures(arrays, facts.pop("pictures", None))
        facts["prompts"] = with_fields(facts["prompts"], facts.pop("fields", None), pictures)
        return cls(media=Media.from_arrays(arrays, header), **facts)


def received_pictures(
    arrays: Mapping[str, np.ndarray], names: Sequence[Sequence[str]] | None
) -> list[list[Picture]] | None:
    """The pictures of each prompt, by their names among the arrays of a request; None if no names are given.

    Raises ValueError for one that isn't there, or isn't uint8 [height, width, 3].
    """
    if names is None:
        return None
    for name in {one for own in names for one in own}:
        found = arrays.get(PICTURE + name)
        if found is None or found.dtype != np.uint8 or found.ndim != 3 or found.shape[-1] != 3:
            raise ValueError(f"pictures names '{name[:80]}'; '{PICTURE}{name[:80]}' must be uint8 [height, width, 3]")
    return [[Picture(name, arrays[PICTURE + name]) for name in own] for own in names]


@dataclass(frozen=True)
class ScoreReply:
    """The scores of a request's pictures; `check` holds that there is one, and finite, for each."""

    scores: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """Reward -> its scores, float64 [n]."""
    id: str = ""
    usage: Usage = field(default=NOTHING, compare=False)
    """What they cost, with its share of the batches that it was in. It stays within a run."""
    usage_by_model: Mapping[str, Usage] = field(default_factory=dict, compare=False)
    """Reward model -> its part of `usage`, of a reply that was put together from those of several."""

    def check(self, rewards: Sequence[str], pictures: int) -> "ScoreReply":
        """This reply, if it has a score by each of `rewards` for each of the `pictures`.

        Raises ValueError if one is missing or not finite.
        """
        for name in rewards:
            values = self.scores.get(name)
            if values is None:
                there = ", ".join(sorted(self.scores)) or "none"
                raise ValueError(f"reward '{name}' was asked for and not scored; there are scores of {there}")
            if values.shape != (pictures,):
                raise ValueError(f"reward '{name}' gave {values.shape} scores for {pictures} pictures")
            if not np.isfinite(values).all():
                raise ValueError(f"reward '{name}' gave {values}; scores must be finite")
        return self

    def to_bytes(self) -> bytes:
        """The reply as safetensors, from which `from_bytes` makes it again."""
        return encode(self.scores, {"id": self.id})

    @classmethod
    def from_bytes(cls, data: bytes) -> "ScoreReply":
        """The reply in safetensors bytes. Raises ValueError for bytes that aren't safetensors."""
        scores, header = decode(data)
        return cls(scores, id=header.get("id", ""))
