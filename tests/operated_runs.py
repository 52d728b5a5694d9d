"""Runs that a user watches, stops and resumes: what the tests of whole commands share."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from branchgrpo.cluster.on_ray.run_address import RunAddress
from branchgrpo.cluster.run.folder import RunFolder
from support import ALONE, Settings, Weights, assert_bit_equal, command, recipe_in, run_train, until, weights

QUARTER = {"cpus": 0.25, "threads": 1}
CHANGES: dict[str, Any] = {
    "threads": 1,
    "iterations": 6,
    "pools": {"rollout_workers": QUARTER, "learner": QUARTER, "rewards": {"ocr": {**QUARTER, "deterministic": True}}},
}


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A command in a session of its own, its output in `folder`/log."""
    log, env = (folder / "log").open("a"), ALONE | variables
    return subprocess.Popen(
        command(*arguments), env=env, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def done(run: Path) -> int:
    return len(RunFolder(run).lines("metrics"))


def undisturbed(settings_in: Settings, folder: Path) -> Weights:
    """What the run learns in one process."""
    return weights(run_train(settings_in(folder, CHANGES), folder), 6)


def stop_and_resume(signum: signal.Signals, plain: Weights, run_settings: Settings, folder: Path) -> None:
    """A run on Ray is watched, stopped by a signal without a trace, and resumed; it learns what it does undisturbed."""
    settings = run_settings({**CHANGES, "execution": "ray", "rewards.ocr.scorer": "faulty_scorers:waits_for_leave"})
    variables = {"PYTHONPATH": str(Path(__file__).parent), "BRANCHGRPO_TEST_FAULTS": str(folder)}
    recipe, run = recipe_in(folder, settings), settings.runs / settings.name
    shared_memory = set(os.listdir("/dev/shm"))
    process = start(folder, "train", str(recipe), **variables)
    log = folder / "log"
    try:
        until(lambda: (run / "ray.json").exists() or process.poll() is not None, told=log.read_text)
        status = subprocess.run(command("status", run), env=ALONE, capture_output=True, text=True, check=True)
        assert "rollout_workers" in status.stdout, status.stdout
        assert "run: starting for" in status.stdout or "run: running for" in status.stdout
        address = RunAddress.read(run).address
        assert address
        asked = subprocess.run(
            [sys.executable, "-m", "branchgrpo.cluster.on_ray.cluster_runs", address],
            env=ALONE,
            capture_output=True,
            text=True,
        )
        (told,) = json.loads(asked.stdout).values()
        assert (told["iterations"]["of"], len(told["pools"]["rollout_workers"])) == (6, 1), asked.stderr[-3000:]
        if signum == signal.SIGTERM:
            scale = command("scale", run, "--rollout-workers", "2")
            scaled = subprocess.run(scale, env=ALONE, capture_output=True, text=True)
            assert scaled.returncode == 0, scaled.stderr[-3000:]
        (folder / "go").touch()
        until(lambda: done(run) >= 1 or process.poll() is not None, told=log.read_text)
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        assert len(family) > 8
        os.killpg(process.pid, signum)
        assert process.wait(timeout=240) == 128 + signum, log.read_text()[-3000:]
    finally:
        process.kill()
    assert "with a checkpoint" in log.read_text()
    until(lambda: not any(psutil.pid_exists(pid) for pid in family), 20, log.read_text)
    assert set(os.listdir("/dev/shm")) <= shared_memory
    assert not (run / "ray.json").exists()
    assert done(run) < 6

    gone = subprocess.run(command("status", run), env=ALONE, capture_output=True, text=True)
    assert (gone.returncode, "stopped since" in gone.stdout, "--resume" in gone.stdout) == (0, True, True), gone.stderr
    resume = command("train", recipe, "--resume")
    subprocess.run(resume, env=ALONE | variables, check=True, capture_output=True)
    assert_bit_equal(weights(run, 6), plain)
