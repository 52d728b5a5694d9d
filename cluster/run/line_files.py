"""Files of JSON lines in the folder of a run. Each is replaced by a longer or a shorter one, never written in place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...proto.atomic_files import json_lines, write_text


class LineFiles:
    """The files of lines in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, name: str, *lines: Mapping[str, Any]) -> None:
        """Add JSON lines to `name`.jsonl, by replacing the file with a longer one."""
        path = self.path / f"{name}.jsonl"
        before = path.read_text() if path.exists() else ""
        write_text(path, before + json_lines(lines))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of `name`.jsonl; none if there is no file."""
        path = self.path / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def forget_after(self, iteration: int) -> None:
        """Drop lines of iterations that a resumed run will repeat."""
        for name in ("metrics", "evaluations"):
            if kept := [line for line in self.lines(name) if line["iteration"] <= iteration]:
                write_text(self.path / f"{name}.jsonl", json_lines(kept))
            else:
                (self.path / f"{name}.jsonl").unlink(missing_ok=True)
