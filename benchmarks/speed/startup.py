"""Seconds from `branchgrpo train` to the first iteration, with imports, loading and the first evaluation.

python -m branchgrpo.benchmarks.speed.startup --out build/bench
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ..support.report import report_path, write_report

TO_REACH = {"in_process": 25, "ray": 45}
"""Seconds."""


def seconds_to_first_iteration(execution: str) -> float:
    """Seconds until the demo's first iteration begins, the first evaluation included."""
    recipe = str(files("branchgrpo") / "recipes" / "glyphs.yaml")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "branchgrpo", "train", recipe, "iterations=1", f"runs={runs}"]
        start = time.time()
        subprocess.run([*command, f"execution={execution}"], check=True, capture_output=True, env=environment)
        return float(json.loads((Path(runs) / "glyphs" / "metrics.jsonl").read_text())["started"]) - start


def main(out: Annotated[Path, typer.Option(help="Folder for start.json.")] = Path("build/bench")) -> None:
    """Measure the start of the demo, in one process and on Ray.

    Example: python -m branchgrpo.benchmarks.speed.startup --out build/bench
    """
    path = report_path(out, "start")
    seconds = {execution: seconds_to_first_iteration(execution) for execution in TO_REACH}
    for execution, spent in seconds.items():
        typer.echo(
            f"from `branchgrpo train` to the first iteration, evaluation included, {execution}: {spent:.1f} s "
            f"(to reach: {TO_REACH[execution]} s)"
        )
    report = {
        name: {"seconds_to_first_iteration": spent, "to_reach": TO_REACH[name]} for name, spent in seconds.items()
    }
    write_report(path, report)


if __name__ == "__main__":
    typer.run(main)
