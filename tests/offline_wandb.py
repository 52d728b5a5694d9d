"""What W&B's own reader finds in the files of offline runs."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OfflineRun:
    """A file of an offline run: `wandb sync` sends several of one id as one run."""

    id: str
    group: str
    config: dict[str, Any]
    steps: dict[int, dict[str, Any]]
    """Step -> its values."""
    files: Path
    """Folder of its pictures."""


def offline_runs(run: Path) -> list[OfflineRun]:
    """The offline W&B runs in a run folder, in the order in which they began."""
    found = []
    for folder in (run / "wandb").glob("offline-run-*"):
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        told = subprocess.run(inspect, check=True, capture_output=True, text=True).stdout
        records = [json.loads(line) for line in told.splitlines()]
        if not records:  # its helper process was killed
            continue
        (first,) = (record["run"] for record in records if record["type"] == "run")
        items = [record["history"]["item"] for record in records if record["type"] == "history"]
        steps = {item["_step"]: item for item in items}
        assert len(steps) == len(items)
        config = first["config"]["update"]
        found.append(
            (first["start_time"], OfflineRun(first["run_id"], first["run_group"], config, steps, folder / "files"))
        )
    return [own for _, own in sorted(found, key=lambda one: one[0])]
