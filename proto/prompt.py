"""A prompt: its text, with pictures, and with the other fields of its row (the text to be drawn, say) for rewards."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .pictures import Picture


class Prompt(str):
    """A text with fields and pictures. Prompts are equal if texts and pictures are, whatever their fields."""

    fields: Mapping[str, Any]
    pictures: tuple[Picture, ...]

    def __new__(cls, text: str, fields: Mapping[str, Any] | None = None, pictures: Iterable[Picture] = ()) -> "Prompt":
        prompt = super().__new__(cls, text)
        prompt.fields, prompt.pictures = dict(fields or {}), tuple(pictures)
        return prompt

    def __reduce__(self) -> tuple[Any, ...]:
        return Prompt, (str(self), self.fields, self.pictures)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and str(self) == str(other) and self.pictures == pictures_of(other)

    def __ne__(self, other: object) -> bool:  # that of `str` compares texts alone
        return not self == other

    def __hash__(self) -> int:
        return hash((str(self), self.pictures)) if self.pictures else hash(str(self))


def fields_of(prompt: str) -> Mapping[str, Any]:
    """The fields of a prompt; a plain text has none."""
    return prompt.fields if isinstance(prompt, Prompt) else {}


def pictures_of(prompt: str) -> tuple[Picture, ...]:
    """The pictures of a prompt; a plain text has none."""
    return prompt.pictures if isinstance(prompt, Prompt) else ()


def identity(prompt: str) -> list[Any]:
    """What tells a prompt from others, as plain data: its text, its fields and, if it has any, its pictures' names."""
    names = [picture.name for picture in pictures_of(prompt)]
    return [str(prompt), dict(fields_of(prompt)), *([names] if names else [])]


def with_fields(
    prompts: Sequence[str],
    fields: Sequence[Mapping[str, Any]] | None,
    pictures: Sequence[Sequence[Picture]] | None = None,
) -> list[str]:
    """Prompts with the fields and the pictures of each. Raises ValueError for another number of them."""
    if fields is None and pictures is None:
        return list(prompts)
    every = len(prompts)
    return [Prompt(*one) for one in zip(prompts, fields or [{}] * every, pictures or [()] * every, strict=True)]


def dump_prompts(prompts: Sequence[str]) -> str:
    """Prompts without their fields as JSON, of which `parse_prompts` makes the same again."""
    entries = [[str(prompt), [picture.name for picture in pictures_of(prompt)]] for prompt in prompts]
    return json.dumps([[text, names] if names else text for text, names in entries])


def parse_prompts(text: str) -> list[Prompt]:
    """The prompts that `dump_prompts` wrote; of their pictures, the names."""
    pairs = [(entry, []) if isinstance(entry, str) else entry for entry in json.loads(text)]
    return [Prompt(prompt, pictures=map(Picture, names)) for prompt, names in pairs]
