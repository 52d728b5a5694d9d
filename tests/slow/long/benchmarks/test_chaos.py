"""A few faults in a real run on three nodes; `make chaos` brings about many more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1200)
def test_faults_change_nothing_but_the_time(tmp_path: Path) -> None:
    kinds = [
        "worker node killed",
        "reward: fails",
        "checkpoint truncated",
        "scaled, then controller killed",
        "driver killed, cluster full",
    ]
    command = [sys.executable, "-m", "branchgrpo.benchmarks.chaos", f"--faults={len(kinds)}", f"--out={tmp_path}"]
    done = subprocess.run([*command, *(f"--only={kind}" for kind in kinds)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "chaos.json").read_text())
    assert {kind: row["times"] for kind, row in report["kinds"].items()} == dict.fromkeys(kinds, 1)
