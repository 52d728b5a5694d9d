"""Run folders below one folder, which alone is read, and never written to."""

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from ...proto.atomic_files import parse_json_lines
from ...proto.errors import InputError
from ...proto.yaml12 import read_yaml
from ..run.driver_lock import driver_of
from ..run.status import RunStatus, status_of
from .files import FileCache, json_object
from .static_files import version

Parsed = TypeVar("Parsed")
RUN_FILES = ("recipe.yaml", "metrics.jsonl")
"""A folder with one of them is a run's."""
MAX_DEPTH = 3
"""Folders between the folder of runs and a run: a study's runs lie in folders of their own."""
CHANGING_FILES = (
    "recipe.yaml",
    "metrics.jsonl",
    "evaluations.jsonl",
    "changes.jsonl",
    "state.json",
    "summary.json",
    "checkpoints",
    "evaluations",
    "samples",
    "trees",
)
"""Files and folders of a run that what is shown depends on."""


class Run:
    """One run folder, read only.

    What can't be read counts as missing, and is told of in `problems`.
    """

    def __init__(self, name: str, folder: Path, cache: FileCache) -> None:
        self.name, self.folder = name, folder
        self.problems: dict[str, str] = {}
        """File -> what is wrong with it, as far as it was read."""
        self._cache = cache

    def file(self, name: str) -> Path | None:
        """A file of the folder; None if it isn't there, or lies elsewhere by a link."""
        path = self.folder / name
        try:
            inside = path.resolve(strict=True).is_relative_to(self._place)
        except OSError:
            return None
        return path if inside else None

    @cached_property
    def _place(self) -> Path:
        """The folder, whatever links lead to it."""
        return self.folder.resolve()

    def read(self, name: str, parse: Callable[[bytes], Parsed]) -> Parsed | None:
        """What `parse` makes of a file; None if it isn't there, or isn't as `parse` expects it."""
        if (path := self.file(name)) is None:
            return None
        try:
            return self._cache.read(path, parse)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a parser makes of half a file
            self.problems[name] = f"can't be read: {' '.join(str(error).split()) or type(error).__name__}"
            return None

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of `name`.jsonl that can be read."""
        found, broken = self.read(f"{name}.jsonl", parse_json_lines) or ([], [])
        if broken:
            which = f"line {broken[0]}" if len(broken) == 1 else f"{len(broken)} lines, the first is {broken[0]},"
            self.problems[f"{name}.jsonl"] = f"{which} can't be read"
        return found

    def iterations(self, name: str) -> list[dict[str, Any]]:
        """The lines of `name`.jsonl that are about an iteration."""
        return [line for line in self.lines(name) if isinstance(line.get("iteration"), int)]

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file; empty if it can't be read."""
        return self.read(name, json_object) or {}

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings as recipe.yaml has them, whatever version wrote it; empty if it can't be read."""
        if self.file("recipe.yaml") is None:
            self.problems["recipe.yaml"] = "is missing"
        return self.read("recipe.yaml", _recipe) or {}

    @property
    def status(self) -> RunStatus:
        """The state of the run, as `branchgrpo status` tells it."""
        try:
            return status_of(self.folder)
        except Exception as error:  # state.json may hold anything
            self.problems["state.json"] = f"can't be understood: {type(error).__name__} {error}"
            return RunStatus(self.folder.name, str(self.folder), "unknown")

    def stamp(self) -> str:
        """A text that changes when anything changes that is shown of the run."""
        return sha256(repr(list(self._stamps())).encode()).hexdigest()[:16]

    def _stamps(self) -> Iterator[object]:
        yield version()
        for name in CHANGING_FILES:
            try:
                stat = (self.folder / name).stat()
                yield stat.st_mtime_ns, stat.st_size
            except OSError:
                yield None
        seen = driver_of(self.folder)
        yield seen and seen.alive


def _recipe(data: bytes) -> dict[str, Any]:
    content = read_yaml(data.decode())
    if not isinstance(content, dict):
        raise ValueError("it holds no settings")
    return content


class Runs:
    """The runs below a folder, or the one run that it is the folder of."""

    def __init__(self, root: Path) -> None:
        """Raises InputError if there is no such folder."""
        if not root.is_dir():
            raise InputError(f"{root} is no folder; name a folder of runs, or the folder of a run")
        self.root = root.resolve()
        self.single = _is_run(self.root)
        """Whether it is the folder of one run."""
        self._cache = FileCache()

    def all(self) -> list[Run]:
        """All runs, by name: the path below the folder of runs, with � for what isn't UTF-8."""
        if self.single:
            return [Run(_shown(self.root.name), self.root, self._cache)]
        return [Run(_shown(path.relative_to(self.root)), path, self._cache) for path in _runs(self.root, MAX_DEPTH)]

    def open(self, name: str) -> Run:
        """The run of this name. Raises InputError if there is none."""
        if run := next((run for run in self.all() if run.name == name), None):
            return run
        raise InputError(f"there is no run '{name}' in {self.root}")


def _shown(path: str | Path) -> str:
    return os.fsencode(path).decode(errors="replace")


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        # What a link leads to isn't below the folder of runs.
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            continue
        if _is_run(path):
            yield path
        elif depth > 1:
            yield from _runs(path, depth - 1)


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in RUN_FILES)
