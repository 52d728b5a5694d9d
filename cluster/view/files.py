"""Files of run folders as they are found: parsed once, read again when they change, never trusted to be whole."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

Parsed = TypeVar("Parsed")
MAX_BYTES = 24 * 2**20
"""Bytes of files whose content is kept parsed. As Python objects, they take five to ten times as much."""


class FileCache:
    """The content of files, until they change or others need the room. For several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max, self._held, self._lock = max_bytes, 0, Lock()
        self._kept: OrderedDict[tuple[Path, str], tuple[tuple[int, int], Any]] = OrderedDict()

    def read(self, path: Path, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What `parse`, a function with a name, makes of a file. Raises OSError, and what `parse` raises."""
        stat = path.stat()
        key, stamp = (path, parse.__qualname__), (stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if (kept := self._kept.get(key)) and kept[0] == stamp:
                self._kept.move_to_end(key)
                return kept[1]
        parsed = parse(path.read_bytes())
        with self._lock:
            if old := self._kept.pop(key, None):
                self._held -= old[0][1]
            self._kept[key] = (stamp, parsed)
            self._held += stamp[1]
            while self._held > self._max and len(self._kept) > 1:
                _, ((_, size), _) = self._kept.popitem(last=False)
                self._held -= size
        return parsed


def json_object(data: bytes) -> dict[str, Any]:
    """The object that a JSON file holds. Raises ValueError if it holds none."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("it holds no object")
    return value
