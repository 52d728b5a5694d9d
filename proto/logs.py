"""Warnings from a run's processes to its driver: marked lines on standard error."""

import logging
import re

_FORMAT = "%(levelname)s %(name)s: %(message)s"
_MARKED = re.compile(r"(WARNING|ERROR|CRITICAL) (branchgrpo[\w.]*): (.*)")


def mark_warnings() -> None:
    """Have this process write the warnings of this package so that `marked` finds them among other lines."""
    logger = logging.getLogger("branchgrpo")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)
        logger.propagate = False


def marked(line: str) -> tuple[int, str, str] | None:
    """Level, logger and message of a warning that was written after `mark_warnings`; None for any other line."""
    found = _MARKED.fullmatch(line)
    return found and (logging.getLevelNamesMapping()[found[1]], found[2], found[3])
