"""Files of a run folder that something else has written to: a state counts as missing, of the others one is told."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.commands import status_tables
from branchgrpo.cluster.plan.rows import share_of
from branchgrpo.cluster.run.driver_lock import FILE as LOCK
from branchgrpo.cluster.run.driver_lock import driver_of
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.iteration_trace import read
from branchgrpo.cluster.run.state import RunState, read_state
from branchgrpo.cluster.run.status import status_of
from branchgrpo.cluster.run.wandb_log import last_step
from branchgrpo.proto.errors import InputError
from rich.console import Console
from run_folders import write_run
from support import Settings

BAD = [b"", b"[]", b"null", b"5", b'{"policy": "0123', b"\xff\xfe{}", b'{"policy": 5}', b"{}"]


@pytest.mark.parametrize("content", BAD)
def test_damaged_fingerprints_are_told(run_settings: Settings, content: bytes) -> None:
    settings = run_settings()
    with RunFolder.create(settings) as folder:
        folder.append("metrics", {"iteration": 1})
        (folder.path / "fingerprints.json").write_bytes(content)
    told = pytest.raises(InputError, match=r"fingerprints.json is damaged \(.*\); remove it, and the run continues")
    with told, RunFolder.resume(settings):
        pass
    (folder.path / "fingerprints.json").unlink()
    with RunFolder.resume(settings):
        pass


@pytest.mark.parametrize(
    "change",
    [{"since": None}, {"since": "x"}, {"since": 1e300}, {"drivers": "x"}, {"error": [1]}, {"name": 5}, {"state": {}}],
)
@pytest.mark.parametrize("alive", [False, True])
def test_a_status_takes_any_state(change: dict[str, Any], alive: bool, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    state = json.loads((folder / "state.json").read_text()) | {"drivers": 1, "pid": os.getpid(), "state": "running"}
    (folder / "state.json").write_text(json.dumps({**state, **change}))
    if alive:
        (folder / LOCK).write_text(json.dumps({"host": "a", "pid": os.getpid(), "since": 1.0, "boot": "b"}))
    status_tables.show(status_of(folder), Console(quiet=True))
    status_tables.show_all([status_of(folder)], Console(quiet=True))
    RunState(folder, "run", "in_process", 3)
    assert read_state(folder)["state"] == "starting"


@pytest.mark.parametrize("missing", ["since", "state", "pid", "name"])
@pytest.mark.parametrize("state", ["finished", "running"])
def test_a_state_may_lack_anything(missing: str, state: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    kept = json.loads((folder / "state.json").read_text()) | {"pid": os.getpid(), "state": state}
    kept.pop(missing)
    (folder / "state.json").write_text(json.dumps(kept))
    for lock in ({}, {"host": "a", "pid": os.getpid(), "since": 1.0, "boot": "b"}):
        (folder / LOCK).write_text(json.dumps(lock))
        found = status_of(folder)
        assert found.name == "run"
        status_tables.show(found, Console(quiet=True))


def test_a_lock_with_other_content_names_nobody(tmp_path: Path) -> None:
    for since in ("x", None, 1e300):
        (tmp_path / LOCK).write_text(json.dumps({"host": "a", "pid": 1, "since": since, "boot": "b"}))
        assert driver_of(tmp_path) is None


@pytest.mark.parametrize("line", ["{}", '{"iteration": "5"}', '{"iteration": null}'])
def test_a_line_without_its_iteration_is_told(run_settings: Settings, line: str) -> None:
    with RunFolder.create(run_settings()) as folder:
        folder.append("metrics", {"iteration": 1})
        with open(folder.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        with pytest.raises(InputError, match=r"metrics.jsonl is damaged: \{.* has no iteration; remove that line"):
            folder.forget_after(1)


@pytest.mark.parametrize("before", [b'{"iteration": 1}', b"\xff\xfe", b'{"iteration": 1}\n'])
def test_a_new_line_stands_by_itself(before: bytes, tmp_path: Path) -> None:
    (tmp_path / "changes.jsonl").write_bytes(before)
    RunFolder(tmp_path).append("changes", {"iteration": 2})
    kept = before.rstrip().decode(errors="replace")
    assert (tmp_path / "changes.jsonl").read_text() == kept + '\n{"iteration": 2}\n'


@pytest.mark.parametrize("change", [{"start": "x"}, {"end": None}, {"attributes": []}, {"attributes": {}}, {"name": 1}])
def test_spans_that_cannot_be_read_are_left_out(change: dict[str, Any], tmp_path: Path) -> None:
    span = {"process": "a", "component": "controller", "pool": "", "name": "iteration", "start": 1.0, "end": 2.0}
    lines = [{**span, "attributes": {"iteration": 1}}, {**span, "attributes": {"iteration": 2}, **change}]
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(tmp_path, None)
    assert found.number == 1
    assert len(found.spans) <= 2


@pytest.mark.parametrize("content", [b"", b"[]", b'{"id": "x', b"\xff", b'{"step": "x"}'])
def test_damaged_notes_of_wandb_are_told(content: bytes, tmp_path: Path) -> None:
    assert last_step(tmp_path) == -1
    (tmp_path / "wandb.json").write_bytes(content)
    with pytest.raises(InputError, match=r"wandb.json is damaged \(.*\); remove it, and a new run begins at W&B"):
        last_step(tmp_path)


@pytest.mark.parametrize("mean", [None, "x", [1], {}])
def test_an_evaluation_without_a_number_is_not_the_best(run_settings: Settings, mean: Any) -> None:
    with RunFolder.create(run_settings()) as folder:
        for iteration, value in ((1, 0.5), (2, mean)):
            folder.append("evaluations", {"iteration": iteration, "ocr": value})
            folder.checkpoint(iteration).mkdir(parents=True)
        assert folder.best_checkpoints() == [1]


def test_lines_without_rows_give_no_share_of_them(run_settings: Settings) -> None:
    settings = run_settings()
    with RunFolder.create(settings) as folder:
        folder.append("metrics", {"iteration": 1})
        with pytest.raises(InputError, match="its metrics.jsonl is damaged: not every line has the number of its rows"):
            share_of(folder.path, settings)
