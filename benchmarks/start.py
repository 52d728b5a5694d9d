"""Seconds from `branchgrpo train` to the first iteration, with imports, loading and the first evaluation.

python -m branchgrpo.benchmarks.start --out build/bench
"""

import json
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ..proto.files import write_text


def seconds_to_first_iteration(runs: Path) -> float:
    """Seconds until the demo's first iteration begins, the first evaluation included."""
    recipe = str(files("branchgrpo") / "recipes" / "glyphs.yaml")
    command = [sys.executable, "-m", "branchgrpo", "train", recipe, "iterations=1", f"runs={runs}"]
    start = time.time()
    subprocess.run(command, check=True, capture_output=True)
    return float(json.loads((runs / "glyphs" / "metrics.jsonl").read_text())["started"]) - start


def main(out: Annotated[Path, typer.Option(help="Folder for start.json.")] = Path("build/bench")) -> None:
    """Measure the start of the demo.

    Example: python -m branchgrpo.benchmarks.start --out build/bench
    """
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_to_first_iteration(Path(folder))
    typer.echo(f"from `branchgrpo train` to the first iteration, evaluation included: {seconds:.1f} s (to reach: 25 s)")
    write_text(out / "start.json", json.dumps({"seconds_to_first_iteration": seconds, "to_reach": 25}) + "\n")


if __name__ == "__main__":
    typer.run(main)
