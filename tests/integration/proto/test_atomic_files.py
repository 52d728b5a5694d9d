"""Processes whose working directory is gone."""

import subprocess
import sys
from pathlib import Path


def test_a_process_whose_directory_is_gone_stands_at_the_root(tmp_path: Path) -> None:
    code = "import os; from branchgrpo.proto import atomic_files as f; f.leave_lost_directory(); print(os.getcwd())"
    command = [sys.executable, "-c", f"import os; os.rmdir(os.getcwd()); {code}"]
    (tmp_path / "gone").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "gone", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path)
