"""A study of two small variants, which is killed on the way and continued."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from branchgrpo.cluster.commands import study as study_command
from branchgrpo.cluster.run.driver_lock import driver_of
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.state import read_state
from branchgrpo.cluster.study.trials import Trial
from rich.console import Console
from small_studies import FLAT, small_study
from support import Settings, command, until

ITERATIONS = 4


def alive(run: RunFolder) -> bool:
    return bool((seen := driver_of(run.path)) and seen.alive)


def test_a_killed_study_continues_and_reports_what_runs_do(run_settings: Settings, tmp_path: Path) -> None:
    study, folder = small_study(tmp_path, run_settings, {"flat": FLAT, "tree": {}}, ITERATIONS), tmp_path / "out"
    runs = {name: RunFolder(folder / "runs" / f"{name}-seed0") for name in ("flat", "tree")}
    arguments = command("study", study, "--out", folder)
    log, tree = tmp_path / "log.txt", runs["tree"]
    with log.open("w") as output:
        killed = subprocess.Popen(arguments, cwd=tmp_path, stdout=output, stderr=output)
        until(lambda: killed.poll() is not None or tree.done, told=log.read_text)
        assert killed.poll() is None, log.read_text()
        (tmp_path / "hold").touch()
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    until(lambda: not alive(tree) or read_state(tree.path)["state"] == "stopping", told=log.read_text)
    (tmp_path / "hold").unlink()
    until(lambda: not alive(tree))
    before, begun = (runs["flat"].path / "log.txt").read_text(), tree.lines("metrics")[: tree.done]
    assert 0 < len(begun) < ITERATIONS
    assert (folder / "timing.jsonl").read_text().count("\n") == 2

    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runs["flat"].path / "log.txt").read_text() == before, "what was finished isn't run again"
    assert tree.lines("metrics")[: len(begun)] == begun, "what was begun is continued"
    assert read_state(tree.path)["drivers"] == 2

    assert "Missing" not in (folder / "report" / "report.md").read_text()
    lines = list(csv.DictReader((folder / "report" / "curves.csv").open()))
    costs = {line["variant"]: line for line in csv.DictReader((folder / "report" / "costs.csv").open())}
    for name in ("flat", "tree"):
        summary = json.loads((runs[name].path / "summary.json").read_text())
        last = [line for line in lines if line["variant"] == name][-1]
        for count in ("forward_passes", "rows"):
            assert float(last[count]) == summary[count] > 0
            assert float(costs[name][count]) * ITERATIONS == pytest.approx(summary[count])
        assert float(last["seconds"]) == pytest.approx(float(costs[name]["seconds"]) * ITERATIONS)


RUN = """
import signal, sys, time
from pathlib import Path
from branchgrpo.cluster.run.driver_lock import driver_lock

def until(reached):
    limit = time.monotonic() + 20
    while not reached():
        if time.monotonic() > limit:
            sys.exit("nobody has stopped this run")
        time.sleep(0.01)

own, begins_after, ends_after = map(Path, sys.argv[1:])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: (stopped.append(True), (own / "stopped").touch()))
until(begins_after.exists)
with driver_lock(own):
    (own / "begun").touch()
    until(lambda: stopped and ends_after.exists())
"""


def test_a_run_that_begins_while_others_stop_is_stopped(run_settings: Settings, tmp_path: Path) -> None:
    trials = [Trial(name, {}, run_settings({"name": name})) for name in ("early", "late")]
    early, late = (trial.folder.path for trial in trials)
    for path in (early, late):
        path.mkdir(parents=True)
    places = ((early, tmp_path, late / "begun"), (late, early / "stopped", tmp_path))
    processes = [subprocess.Popen([sys.executable, "-c", RUN, *map(str, own)]) for own in places]
    until((early / "begun").exists)
    study_command._stop(trials, Console(file=io.StringIO()))
    assert [process.wait() for process in processes] == [0, 0]
