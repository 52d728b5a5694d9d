"""Seconds from `branchgrpo train` to the first iteration, evaluation included, and from the last one to the end.

python -m branchgrpo.benchmarks.speed.startup --out build/bench
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

from ..support.report import OUT, Out, report_path, write_report

TO_START = {"in_process": 25, "ray": 45}
"""Seconds."""
TO_END = 3
"""Seconds, where no evaluation and no other work is left."""


def run(execution: str, *changes: str) -> tuple[float, float]:
    """Run an iteration of the demo. Returns the seconds until it begins, and those from its end to that of the run."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "branchgrpo", "train", "glyphs", "iterations=1", f"runs={runs}"]
        start = time.time()
        subprocess.run([*command, f"execution={execution}", *changes], check=True, capture_output=True, env=environment)
        end = time.time()
        line = json.loads((Path(runs) / "glyphs" / "metrics.jsonl").read_text())
    return line["started"] - start, end - line["started"] - line["seconds"]


def main(out: Out = OUT) -> None:
    """Measure start and end of the demo, in one process and on Ray."""
    path = report_path(out, "start")
    report = {}
    for execution, limit in TO_START.items():
        until_first, _ = run(execution)
        _, until_end = run(execution, "prompts.held_out=null")
        report[execution] = {
            "seconds_to_first_iteration": until_first,
            "to_reach": limit,
            "seconds_to_end": until_end,
            "end_to_reach": TO_END,
        }
        typer.echo(f"{execution}: first iteration after {until_first:.1f} s (to reach: {limit} s)")
        typer.echo(f"{execution}: ended {until_end:.1f} s after the last iteration (to reach: {TO_END} s)")
    write_report(path, report)


if __name__ == "__main__":
    typer.run(main)
