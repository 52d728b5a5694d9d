"""Seconds from `branchgrpo train` to the first iteration, with imports, loading and the first evaluation.

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

TO_REACH = {"in_process": 25, "ray": 45}
"""Seconds."""


def seconds_to_first_iteration(execution: str) -> float:
    """Seconds until the demo's first iteration begins, the first evaluation included."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "branchgrpo", "train", "glyphs", "iterations=1", f"runs={runs}"]
        start = time.time()
        subprocess.run([*command, f"execution={execution}"], check=True, capture_output=True, env=environment)
        return float(json.loads((Path(runs) / "glyphs" / "metrics.jsonl").read_text())["started"]) - start


def main(out: Out = OUT) -> None:
    """Measure the start of the demo, in one process and on Ray."""
    path = report_path(out, "start")
    report = {}
    for execution, limit in TO_REACH.items():
        spent = seconds_to_first_iteration(execution)
        report[execution] = {"seconds_to_first_iteration": spent, "to_reach": limit}
        until = "from `branchgrpo train` to the first iteration, evaluation included"
        typer.echo(f"{until}, {execution}: {spent:.1f} s (to reach: {limit} s)")
    write_report(path, report)


if __name__ == "__main__":
    typer.run(main)
