"""Folders of runs: which are resumed, which are left alone, and what is left of a failed start."""

import os
from pathlib import Path

import pytest
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.errors import InputError
from support import Settings


def test_a_resumed_run_must_have_something_left_to_do(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings()
    with RunFolder.create(settings) as folder:
        folder.append("metrics", {"iteration": 1})
    folder.checkpoint(4).mkdir(parents=True)
    with (
        pytest.raises(InputError, match="iterations is 2; the run in .* has done 4 already"),
        RunFolder.resume(settings),
    ):
        pass
    nothing = pytest.raises(InputError, match="there is nothing to resume")
    with nothing, RunFolder.resume(run_settings({"name": "other"})):
        pass


def test_old_checkpoints_go(run_settings: Settings) -> None:
    with RunFolder.create(run_settings()) as folder:
        for iteration in (2, 10, 4, 6):
            folder.checkpoint(iteration).mkdir(parents=True)
        folder.drop_old_checkpoints(folder.settings.checkpoint)
        assert folder.checkpoints() == [6, 10]
        assert len(os.listdir(folder.path / "checkpoints")) == 2


@pytest.mark.parametrize("line", ["{half a li", "[1]"])
def test_a_damaged_line_is_named(run_settings: Settings, line: str) -> None:
    with RunFolder.create(run_settings()) as folder:
        folder.append("metrics", {"iteration": 1})
        file = folder.path / "metrics.jsonl"
        file.write_text(f"{file.read_text()}{line}\n")
        with pytest.raises(InputError, match="metrics.jsonl is damaged: line 2 holds no JSON object"):
            folder.lines("metrics")


def test_a_folder_that_is_no_runs_is_left_alone(run_settings: Settings) -> None:
    settings = run_settings()
    path = settings.runs / settings.name
    path.mkdir(parents=True)
    (path / "prompts").mkdir()
    with pytest.raises(InputError, match="exists"), RunFolder.create(settings):
        pass
    assert [file.name for file in path.iterdir()] == ["prompts"]


def test_a_run_that_fails_at_the_start_leaves_nothing(run_settings: Settings) -> None:
    settings = run_settings()
    with pytest.raises(RuntimeError), RunFolder.create(settings):
        raise RuntimeError
    assert not settings.runs.exists()


def test_a_failed_start_leaves_others_in_a_new_folder(run_settings: Settings) -> None:
    settings = run_settings()
    other = settings.runs / "other"
    with pytest.raises(RuntimeError), RunFolder.create(settings):
        other.mkdir()
        raise RuntimeError
    assert list(settings.runs.iterdir()) == [other]
