"""Studies of small runs: one has a run that breaks, one is asked to stop."""

import signal
import subprocess
from pathlib import Path

from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.state import read_state
from small_studies import small_study
from support import Settings, command, until


def test_a_broken_run_ends_no_other_and_is_named(run_settings: Settings, tmp_path: Path) -> None:
    variants = {"wild": {"learner.optimizer.learning_rate": 1e30}, "tree": {}}
    study, out = small_study(tmp_path, run_settings, variants, 2), tmp_path / "out"
    arguments = command("study", study, "--out", out)
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == f"broken: {out / 'runs' / 'wild-seed0'}"
    assert RunFolder(out / "runs" / "tree-seed0").done == 2
    assert "- `wild-seed0` is broken, failed after iteration" in (out / "report" / "report.md").read_text()


def test_a_study_that_is_stopped_leaves_checkpoints(run_settings: Settings, tmp_path: Path) -> None:
    study, run = small_study(tmp_path, run_settings, {"tree": {}}, 100), RunFolder(tmp_path / "out/runs/tree-seed0")
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        arguments = command("study", study, "--out", tmp_path / "out")
        asked = subprocess.Popen(arguments, cwd=tmp_path, stdout=output, stderr=output)
        until(lambda: asked.poll() is not None or run.lines("metrics"), told=log.read_text)
        asked.send_signal(signal.SIGTERM)
        assert asked.wait(120) == 128 + signal.SIGTERM, log.read_text()
    assert log.read_text().endswith("stopped; the same command continues the study\n")
    assert read_state(run.path)["state"] == "stopped"
    assert run.done == len(run.lines("metrics"))
