"""Plain data as settings, and errors that say what was meant: a line for each mistake."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import InputError
from .settings import RunSettings

Section = TypeVar("Section", bound=BaseModel)
FORMER_NAMES = {
    "batch_limit": "max_batch_rows",
    "hold_out": "held_out_count",
    "may_leave_out": "max_unscored_fraction",
    "parts_in_scoring": "max_parts_in_scoring",
    "silent_seconds": "heartbeat_timeout_seconds",
    "trees_in_flight": "max_trees_in_flight",
    "wait_for_disk_seconds": "disk_timeout_seconds",
    "wait_for_room_seconds": "placement_timeout_seconds",
}
"""Names that settings had in earlier versions -> the ones that an error about them suggests."""
SHOWN = 200
"""Characters of a value that an error message shows."""


def parse_settings(content: Any) -> RunSettings:
    """Settings from plain data. Raises InputError with one line per mistake."""
    return validated(RunSettings, content)


def changed_settings(settings: RunSettings, changes: Mapping[str, Any]) -> RunSettings:
    """The settings with other values, by their dotted names. Raises InputError as `parse_settings` does."""
    content: dict[str, Any] = settings.model_dump()
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = content
        for key in sections:
            section = section.setdefault(key, {})
        section[last] = value
    return parse_settings(content)


def named_settings(settings: RunSettings, names: Iterable[str]) -> dict[str, Any]:
    """The values of some settings, each in a section, by their dotted names."""
    return {name: getattr(getattr(settings, name.partition(".")[0]), name.partition(".")[2]) for name in names}


def validated(model: type[Section], content: Any) -> Section:
    """Plain data as a `model`. Raises InputError with one line per mistake."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError("\n".join(_explain(detail, model) for detail in error.errors())) from error


def setting_paths(model: type[BaseModel] = RunSettings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names of all settings, sections included, in the order of their definition.

    Sections that the user names stand as `<name>`: `rewards.<name>.weight`.
    """
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for section in settings_classes(field.annotation):
            inner = f"{prefix}{name}.<name>." if get_origin(field.annotation) is dict else f"{prefix}{name}."
            yield from setting_paths(section, inner)


def settings_classes(annotation: Any) -> list[type[BaseModel]]:
    """The settings class behind a field's type: itself, within `X | None`, or the values of a dict."""
    options = (annotation, *get_args(annotation))
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> str:
    # Where there are alternatives, pydantic adds which one it tried: `dict[int,int]`, `literal['a','b']`.
    key = ".".join(str(part) for part in detail["loc"] if "[" not in str(part))
    if detail["type"] == "extra_forbidden":
        *section, name = detail["loc"]
        if section and "." in str(name):
            return (
                f"unknown setting '{name}' in section '{'.'.join(map(str, section))}'; write '{key}' at the top level"
            )
        return f"unknown setting '{key}'; {_nearest(key, model)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"setting '{key}' is missing"
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    quotes = detail["type"] == "string_type" and isinstance(detail["input"], (int, float))
    return f"{key} is {shown(detail['input'])}: {message[0].lower()}{message[1:]}{'; write it in quotes' * quotes}"


def shown(value: Any) -> str:
    """A value as an error message shows it, cut to `SHOWN` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a very large number"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _nearest(key: str, model: type[BaseModel]) -> str:
    """A hint towards the setting that was meant: of the same name elsewhere, like one beside it, like any."""
    section, _, name = key.rpartition(".")
    name = FORMER_NAMES.get(name, name)
    every = {path: path.rpartition(".")[2] for path, _ in setting_paths(model)}
    beside = {path: last for path, last in every.items() if _stands_for(path.rpartition(".")[0], section)}
    for candidates, likeness in ((every, 1.0), (beside, 0.6), (every, 0.6)):
        if match := difflib.get_close_matches(name, candidates.values(), n=1, cutoff=likeness):
            path = next(path for path, last in candidates.items() if last == match[0])
            return f"did you mean '{f'{section}.{match[0]}' if path in beside and section else path}'?"
    return f"valid here: {', '.join(beside.values())}" if beside else "there is no such section"


def _stands_for(pattern: str, section: str) -> bool:
    """Whether a section of `setting_paths` is the one that the user wrote, `<name>` standing for any name."""
    ours, theirs = pattern.split("."), section.split(".")
    return len(ours) == len(theirs) and all(o in (t, "<name>") for o, t in zip(ours, theirs, strict=True))
