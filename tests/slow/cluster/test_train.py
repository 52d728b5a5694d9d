"""A run that is told to stop."""

import signal
from pathlib import Path

from branchgrpo.cluster.run.folder import RunFolder
from support import GLYPHS, Settings, run_train, start_train


def test_sigterm_makes_a_checkpoint_to_go_on_from(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({**GLYPHS, "iterations": 50, "checkpoint.every": 50, "schedule.splits": {0: 2}})
    folder = settings.runs / settings.name
    process = start_train(settings, tmp_path, folder / "metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "with a checkpoint; ask again to stop at once" in output
    assert "with a checkpoint; continue with --resume" in output.replace("\n", " ")
    done = RunFolder.open(folder).checkpoints()
    assert len(done) == 1
    run_train(settings.model_copy(update={"iterations": done[0] + 1}), tmp_path, "--resume")
    assert RunFolder.open(folder).checkpoints()[-1] == done[0] + 1
