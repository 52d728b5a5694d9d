"""Files of JSON lines in the folder of a run. Each is replaced by a longer or a shorter one, never written in place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...proto.atomic_files import json_lines, parse_json_lines, write_text
from ...proto.errors import InputError


class LineFiles:
    """The files of lines in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, name: str, *lines: Mapping[str, Any]) -> None:
        """Add JSON lines to `name`.jsonl, by replacing the file with a longer one."""
        path = self.path / f"{name}.jsonl"
        before = path.read_text(errors="replace") if path.exists() else ""
        if before and not before.endswith("\n"):  # as some editors leave it
            before += "\n"
        write_text(path, before + json_lines(lines))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of `name`.jsonl, each with its `iteration`; none if there is no file. Raises InputError for a file
        that was damaged."""
        path = self.path / f"{name}.jsonl"
        found, broken = parse_json_lines(path.read_bytes()) if path.exists() else ([], [])
        if broken:
            raise InputError(f"{path} is damaged: line {broken[0]} holds no JSON object; remove that line")
        if odd := [line for line in found if not isinstance(line.get("iteration"), int)]:
            raise InputError(f"{path} is damaged: {json.dumps(odd[0])[:100]} has no iteration; remove that line")
        return found

    def forget_after(self, iteration: int) -> None:
        """Drop lines of iterations that a resumed run will repeat."""
        for name in ("metrics", "evaluations"):
            if kept := [line for line in self.lines(name) if line["iteration"] <= iteration]:
                write_text(self.path / f"{name}.jsonl", json_lines(kept))
            else:
                (self.path / f"{name}.jsonl").unlink(missing_ok=True)
