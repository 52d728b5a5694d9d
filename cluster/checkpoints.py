"""Checkpoints as folders that are there whole or not at all, and that tell when something was cut off later."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..proto.files import remove, whole

MANIFEST = "manifest.json"
"""Size in bytes of every other file of a checkpoint, by name."""
DAMAGED = "damaged-"
"""What is put before the name of a damaged checkpoint, which is kept to be looked at and never loaded."""


class DamagedCheckpoint(ValueError):
    """A checkpoint that isn't as it was written."""


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes the checkpoint `folder`, with a manifest, when the block ends well.

    Raises OSError if there is no room.
    """
    with whole(folder) as temporary:
        temporary.mkdir()
        yield temporary.resolve()
        (temporary / MANIFEST).write_text(json.dumps(_sizes(temporary), indent=2) + "\n")


def size(folder: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(_sizes(folder).values())


def check(folder: Path) -> None:
    """Raises DamagedCheckpoint, naming the file, if one isn't there or isn't as long as it was written.

    Files that came later, as other forms of the same state, are none of its business.
    """
    try:
        expected: dict[str, int] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{MANIFEST} can't be read: {error}") from error
    there = _sizes(folder)
    for name, length in expected.items():
        if name not in there:
            raise DamagedCheckpoint(f"{name} is missing")
        if there[name] != length:
            raise DamagedCheckpoint(f"{name} has {there[name]} bytes, not {length}")


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint; returns where it is now."""
    aside = folder.with_name(f"{DAMAGED}{folder.name}")
    if aside.exists():
        remove(aside)
    return folder.rename(aside)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
