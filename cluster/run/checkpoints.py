"""Checkpoints: folders that are complete or absent, and whose later damage is detected."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import xxhash

from ...proto.atomic_files import remove, whole
from ...proto.checkpoint_files import LEARNER

MANIFEST = "manifest.json"
"""Size in bytes and digest of every other file of a checkpoint, by name. Those of earlier versions hold sizes alone."""
DAMAGED_PREFIX = "damaged-"
"""Prefix of a damaged checkpoint's name. It is kept for inspection, and never loaded."""


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
        sizes = _sizes(temporary)
        digests = _digests(temporary, sizes)
        manifest = {name: {"bytes": size, "xxh3_128": digests[name]} for name, size in sizes.items()}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def pace_of(folder: Path) -> float:
    """The share of the settings' learning rate that the learner of a checkpoint takes."""
    return float(json.loads((folder / LEARNER).read_text()).get("pace", 1.0))


def copy_slowed(folder: Path, to: Path, version: int, pace: float) -> None:
    """Make a checkpoint `to` of the weights and the optimizer in another, `folder`, whose learner takes another pace.

    `version` becomes that of the weights. Files are shared where the disk allows it. Raises OSError without room.
    """
    with written(to) as temporary:
        for name in _sizes(folder):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(folder / name, temporary / name)
            except OSError:  # a file system without links
                shutil.copyfile(folder / name, temporary / name)
        facts = json.loads((folder / LEARNER).read_text())
        facts |= {"version": version, "pace": pace}
        (temporary / LEARNER).unlink()
        (temporary / LEARNER).write_text(json.dumps(facts))


def numbered(run: Path) -> list[int]:
    """Iterations of which a run's folder has a whole checkpoint, ascending."""
    names = (folder.name.removeprefix("iteration-") for folder in (run / "checkpoints").glob("iteration-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def size(folder: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(_sizes(folder).values())


def check(folder: Path, names: Collection[str] | None = None) -> None:
    """Raises DamagedCheckpoint, naming the file, if one isn't there or isn't as it was written.

    Reads every file of the checkpoint, or those of `names` that it should hold. Files that came later are ignored.
    """
    try:
        manifest: dict[str, int | dict[str, int | str]] = json.loads((folder / MANIFEST).read_text())
        entries = {
            name: entry if isinstance(entry, dict) else {"bytes": entry}
            for name, entry in manifest.items()
            if names is None or name in names
        }
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedCheckpoint(f"{MANIFEST} can't be read: {error}") from error
    there = _sizes(folder)
    for name, entry in entries.items():
        if name not in there:
            raise DamagedCheckpoint(f"{name} is missing")
        if there[name] != (size := entry.get("bytes")):
            raise DamagedCheckpoint(f"{name} has {there[name]} bytes, not {size}")
    expected = {name: entry["xxh3_128"] for name, entry in entries.items() if "xxh3_128" in entry}
    try:
        found = _digests(folder, expected)
    except OSError as error:
        raise DamagedCheckpoint(f"a file can't be read: {error}") from error
    for name, digest in expected.items():
        if found[name] != digest:
            raise DamagedCheckpoint(f"{name} has other content than was written")


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint; returns where it is now."""
    aside = folder.with_name(f"{DAMAGED_PREFIX}{folder.name}")
    if aside.exists():
        remove(aside)
    return folder.rename(aside)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _digests(folder: Path, names: Collection[str]) -> dict[str, str]:
    """Digest of each file by its name, computed in parallel."""

    def digest(name: str) -> str:
        with open(folder / name, "rb") as file:
            return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]

    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(digest, names), strict=True))
