"""A study of small runs: killed on the way and continued, with a variant that breaks; its counts are the runs'."""

import csv
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from branchgrpo.cluster.run.driver_lock import driver_of
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.state import read_state
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.yaml12 import write_yaml
from ray._private.utils import get_num_cpus
from support import command, recipe_in, until

ITERATIONS = 5


@pytest.fixture
def study(run_settings: Callable[..., RunSettings], tmp_path: Path) -> Path:
    """The file of a study whose runs come one after the other."""
    rewards = {"jpeg_incompressibility": {"weight": 1.0}}
    recipe_in(tmp_path, run_settings({"rewards": rewards, "name": "small", "evaluation": {"prompts": 2, "every": 1}}))
    content = {
        "base": "small.yaml",
        "variants": {
            "flat": {"schedule": {"method": "dance_grpo", "steps": 5, "group": 4}, "advantage.normaliser": "group"},
            "wild": {"learner.optimizer.learning_rate": 1e30},
            "tree": {},
        },
        "seeds": [0],
        "budget": {"iterations": ITERATIONS},
        "reward": "jpeg_incompressibility",
        "targets": [-1e9, 1e9],
        "baseline": "flat",
        "timing_rounds": 1,
        "resources": {"CPU": get_num_cpus()},
    }
    path = tmp_path / "study.yaml"
    path.write_text(write_yaml(content))
    return path


def test_a_killed_study_continues_and_reports_what_runs_do(study: Path) -> None:
    folder = study.parent / "out"
    runs = {name: RunFolder(folder / "runs" / f"{name}-seed0") for name in ("flat", "wild", "tree")}
    arguments = command("study", study, "--out", folder)
    log = study.parent / "log.txt"
    with log.open("w") as output:
        killed = subprocess.Popen(arguments, cwd=study.parent, stdout=output, stderr=output)
        until(lambda: killed.poll() is not None or runs["tree"].lines("metrics"), told=log.read_text)
        assert killed.poll() is None, log.read_text()
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    until(lambda: not ((seen := driver_of(runs["tree"].path)) and seen.alive))
    before, begun = (runs["flat"].path / "log.txt").read_text(), runs["tree"].lines("metrics")
    assert len(begun) < ITERATIONS
    assert (folder / "timing.jsonl").read_text().count("\n") == 2

    done = subprocess.run(arguments, cwd=study.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == f"broken: {runs['wild'].path}"
    assert (runs["flat"].path / "log.txt").read_text() == before, "what was finished isn't run again"
    assert runs["tree"].lines("metrics")[: len(begun)] == begun, "what was begun is continued"
    assert read_state(runs["tree"].path)["drivers"] == 2

    report = (folder / "report" / "report.md").read_text()
    assert "- `wild-seed0` is broken, failed after iteration" in report
    lines = list(csv.DictReader((folder / "report" / "curves.csv").open()))
    costs = {line["variant"]: line for line in csv.DictReader((folder / "report" / "costs.csv").open())}
    for name in ("flat", "tree"):
        summary = json.loads((runs[name].path / "summary.json").read_text())
        last = [line for line in lines if line["variant"] == name][-1]
        for count in ("forward_passes", "rows"):
            assert float(last[count]) == summary[count] > 0
            assert float(costs[name][count]) * ITERATIONS == pytest.approx(summary[count])
        assert float(last["seconds"]) == pytest.approx(float(costs[name]["seconds"]) * ITERATIONS)
