"""Files that are there whole or not at all: written under a temporary name, then renamed."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"
"""What names of unfinished files and folders begin with."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` for a file or folder, renamed to `path` when the block ends well.

    What stands at `path` is replaced. If the block raises, nothing of it stays; if the process is killed, `sweep`
    removes what it left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _aside(path)
    try:
        yield temporary
        if path.is_dir():
            remove(path)
        os.replace(temporary, path)
    finally:
        _delete(temporary)


def remove(folder: Path) -> None:
    """Delete a folder; it vanishes under its own name at once, so a half-deleted one is never taken for whole."""
    _delete(folder.rename(_aside(folder)))


def write_text(path: Path, text: str) -> None:
    """`text` as the whole content of `path`, in one rename."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(folder: Path) -> None:
    """Delete what killed processes left unfinished anywhere below `folder`."""
    for path in sorted(folder.rglob(f"{PARTIAL}*")):
        _delete(path)


def _aside(path: Path) -> Path:
    return path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:8]}-{path.name}")


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
