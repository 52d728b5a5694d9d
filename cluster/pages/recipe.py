"""The recipe reference, docs/recipe.md, from the settings themselves: `make docs` prints it there."""

import inspect
import re
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ...proto.methods import METHODS
from ...proto.settings import MAX_COUNT, OrAuto, ScheduleSettings
from ...proto.settings_errors import setting_paths, settings_classes


def reference() -> str:
    """The page as Markdown: one table per section."""
    sections: dict[str, list[str]] = {"": []}
    titles: dict[str, str] = {"": "The run"}
    for path, field in setting_paths():
        section, _, name = path.rpartition(".")
        if models := settings_classes(field.annotation):
            inner = f"{path}.<name>" if get_origin(field.annotation) is dict else path
            sections[inner], titles[inner] = [], inspect.cleandoc(models[0].__doc__ or "")
        else:
            text = " ".join((field.description or "").split()).replace("|", "\\|")
            sections[section].append(f"| `{name}` | {_type(field)} | {_default(field)} | {text} |")
    parts = [Path(__file__).with_suffix(".md").read_text()]
    for section, rows in sections.items():
        heading = f"## `{section}`\n\n{titles[section]}" if section else "## The run"
        parts.append(
            "\n".join([f"{heading}\n", "| setting | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
        )
    return "\n".join([*parts, _methods()])


def _methods() -> str:
    """Which settings of a schedule each method has, and its defaults."""
    lines = ["## Methods and their defaults\n", "| `schedule.method` | `schedule` |", "|---|---|"]
    for name, method in METHODS.items():
        given = {k: v for k, v in (method.__kwdefaults__ or {}).items() if k in ScheduleSettings.model_fields}
        shown = ", ".join(f"{k}: {_plain(value)}" for k, value in given.items())
        lines.append(f"| `{name}` | `{shown}` |")
    return "\n".join(lines) + "\n"


def _type(field: FieldInfo) -> str:
    or_auto = " or `auto`" if OrAuto in field.metadata else ""
    return _name(field.annotation) + or_auto + "".join(f", {bound}" for bound in _bounds(field.metadata))


def _bounds(metadata: Iterable[Any]) -> list[str]:
    """What a number must be, but for the bounds of all integers."""
    signs = {"gt": "&gt;", "ge": "&ge;", "lt": "&lt;", "le": "&le;"}
    items = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    every = [(sign, getattr(item, name)) for item in items for name, sign in signs.items() if hasattr(item, name)]
    return [f"{sign} {bound}" for sign, bound in every if bound not in (MAX_COUNT, 2**63)]


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([_name(arguments[0]), *_bounds(arguments[1:])])
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(argument) for argument in arguments)
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_name(argument) for argument in arguments)}"
    names = {Any: "anything", type(None): "null", str: "text", int: "integer", float: "number", bool: "true \\| false"}
    return names.get(annotation, "path" if "Path" in repr(annotation) else repr(annotation))


def _default(field: FieldInfo) -> str:
    return "required" if field.default is PydanticUndefined else f"`{_plain(field.default)}`"


def _plain(value: Any) -> str:
    """A value as recipes write it."""
    shown = {None: "null", True: "true", False: "false"}
    text = shown[value] if value is None or isinstance(value, bool) else str(value)
    return re.sub(r"[()]", lambda m: "[" if m[0] == "(" else "]", text)


if __name__ == "__main__":
    sys.stdout.write(reference())
