"""Exceptions of the user's code, reported with file and line."""

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

TRACEBACK = "Traceback (most recent call last):"
"""Line that Python begins a traceback with."""
PACKAGE = f"{__name__.partition('.')[0]}."


def described(error: BaseException) -> str:
    """The exception, the line of the user's code that it came from, and its traceback from that code on."""
    calls = list(_calls(error.__traceback__))
    users = [call for call in calls if _is_users(call)]
    foreign = [call for call in calls if not _is_ours(call)]
    below = [call for call in calls if _file(call) != _file(calls[0])]  # than who asks for the description
    first = next(iter(users or foreign or below), None)
    message, place = str(error), ""
    if isinstance(error, SyntaxError) and error.filename:
        message, place = error.msg, f" ({error.filename}, line {error.lineno})"
    elif last := (users or below)[-1:]:
        place = f" ({_file(last[0])}, line {last[0].tb_lineno})"
    lines = traceback.format_exception(type(error), error, first)
    return f"{type(error).__name__}: {message}{place}\n{''.join(lines).rstrip()}"


def is_users(error: BaseException) -> bool:
    """Whether an exception came from code that is neither installed nor this package's."""
    return isinstance(error, SyntaxError) or any(map(_is_users, _calls(error.__traceback__)))


def is_installed(file: str) -> bool:
    """Whether a file of code is Python's own or an installed package's."""
    places = {"site-packages", "dist-packages"}.intersection(Path(file).parts)
    return bool(places) or file.startswith((sysconfig.get_path("stdlib"), "<frozen"))


def _calls(rest: TracebackType | None) -> Iterator[TracebackType]:
    while rest:
        yield rest
        rest = rest.tb_next


def _is_ours(call: TracebackType) -> bool:
    return str(call.tb_frame.f_globals.get("__name__")).startswith(PACKAGE)


def _is_users(call: TracebackType) -> bool:
    return not _is_ours(call) and not is_installed(_file(call))


def _file(call: TracebackType) -> str:
    return call.tb_frame.f_code.co_filename
