"""A study of which a run breaks."""

import subprocess
from pathlib import Path

from branchgrpo.cluster.run.folder import RunFolder
from small_studies import small_study
from support import Settings, command


def test_a_broken_run_ends_no_other_and_is_named(run_settings: Settings, tmp_path: Path) -> None:
    variants = {"wild": {"learner.optimizer.learning_rate": 1e30}, "tree": {}}
    study, out = small_study(tmp_path, run_settings, variants, 2), tmp_path / "out"
    arguments = command("study", study, "--out", out)
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == f"broken: {out / 'runs' / 'wild-seed0'}"
    assert RunFolder(out / "runs" / "tree-seed0").done == 2
    assert "- `wild-seed0` is broken, failed after iteration" in (out / "report" / "report.md").read_text()
