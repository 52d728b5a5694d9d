"""Checkpoints are whole, or the one before is taken; a full disk is waited for."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.run.checkpoints import MANIFEST, DamagedCheckpoint, check, size, written
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.atomic_files import check_free, is_full, when_there_is_room, whole
from branchgrpo.proto.errors import InputError
from support import Settings


def make(folder: Path) -> Path:
    with written(folder) as temporary:
        (temporary / "engine").mkdir()
        (temporary / "engine" / "states.pt").write_bytes(bytes(1000))
        (temporary / "weights.safetensors").write_bytes(bytes(10))
    return folder


def test_a_checkpoint_is_what_was_written(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoints" / "iteration-000001")
    check(checkpoint)
    assert size(checkpoint) == 1010
    (checkpoint / "universal").mkdir()
    (checkpoint / "universal" / "later").touch()
    check(checkpoint)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("engine/states.pt", 999, "states.pt has 999 bytes, not 1000"),
        ("engine/states.pt", None, "states.pt is missing"),
        (MANIFEST, 3, "manifest.json can't be read"),
        (MANIFEST, None, "manifest.json can't be read"),
    ],
)
def test_damage_is_seen(name: str, length: int | None, message: str, tmp_path: Path) -> None:
    file = make(tmp_path / "iteration-000001") / name
    file.unlink() if length is None else os.truncate(file, length)
    with pytest.raises(DamagedCheckpoint, match=message):
        check(tmp_path / "iteration-000001")


def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path: Path) -> None:
    run, told = RunFolder(tmp_path), []
    assert run.newest_whole_checkpoint(lambda *what: told.append(what)) == 0
    for iteration in (1, 2, 3):
        make(run.checkpoint(iteration))
    for iteration in (2, 3):
        os.truncate(run.checkpoint(iteration) / "weights.safetensors", 5)
    assert run.newest_whole_checkpoint(lambda *what: told.append(what)) == 1
    assert [(path.name, why) for path, why in told] == [
        (f"damaged-iteration-00000{iteration}", "weights.safetensors has 5 bytes, not 10") for iteration in (3, 2)
    ]
    assert run.checkpoints() == [1]
    os.truncate(run.checkpoint(1) / "weights.safetensors", 5)
    with pytest.raises(InputError, match=r"no checkpoint .* is whole; .* Remove the run folder to start again"):
        run.newest_whole_checkpoint(lambda *what: told.append(what))


@pytest.mark.parametrize("damage", [bytes(10), b"abcdefghik"], ids=["zeros", "a flipped bit"])
def test_damage_without_a_change_of_size_is_seen(damage: bytes, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for iteration in (1, 2):
        with written(run.checkpoint(iteration)) as temporary:
            (temporary / "weights.safetensors").write_bytes(b"abcdefghij")
            (temporary / "ema.safetensors").write_bytes(b"abcdefghij")
    (run.checkpoint(2) / "weights.safetensors").write_bytes(damage)
    with pytest.raises(DamagedCheckpoint, match="weights.safetensors has other content than was written"):
        check(run.checkpoint(2))
    check(run.checkpoint(2), ["ema.safetensors"])

    told: list[tuple[Path, str]] = []
    assert run.find_checkpoint("newest", ["weights.safetensors"], lambda *what: told.append(what)) == 1
    assert [path for path, _ in told] == [run.checkpoint(2)]
    with pytest.raises(InputError, match=r"iteration-000002 is damaged \(weights.safetensors has other content"):
        run.find_checkpoint(2, None, lambda *what: told.append(what))
    with pytest.raises(InputError, match=r"has no checkpoint of iteration 3; there are 1, 2"):
        run.find_checkpoint(3, None, lambda *what: told.append(what))
    assert run.newest_whole_checkpoint(lambda *what: told.append(what)) == 1
    assert run.checkpoints() == [1]


def test_checkpoints_of_earlier_versions_are_taken(tmp_path: Path) -> None:
    """Their manifests hold sizes alone."""
    checkpoint = make(tmp_path / "iteration-000001")
    sizes = {"engine/states.pt": 1000, "weights.safetensors": 10}
    (checkpoint / MANIFEST).write_text(json.dumps(sizes))
    check(checkpoint)
    os.truncate(checkpoint / "weights.safetensors", 9)
    with pytest.raises(DamagedCheckpoint, match="weights.safetensors has 9 bytes, not 10"):
        check(checkpoint)


EVALUATED = {"evaluation.every": 1, "checkpoint.keep_best": {"count": 1}}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [6, 7]),
        ({"checkpoint.keep_every": 4}, [4, 6, 7]),
        ({**EVALUATED, "checkpoint.keep_best": {}}, [5, 6, 7]),  # by ocr, the only one with a weight
        ({**EVALUATED, "checkpoint.keep_best": {"reward": "ocr_exact"}}, [2, 6, 7]),  # 3 is as good, and later
        ({**EVALUATED, "checkpoint.keep_best": {"reward": "ocr_exact", "count": 2}}, [2, 3, 6, 7]),
    ],
)
def test_the_newest_the_best_and_those_for_good_are_kept(
    changes: dict[str, Any], kept: list[int], run_settings: Settings
) -> None:
    settings = run_settings(changes)
    scores = {0: (9, 9), 1: (1, 1), 2: (2, 3), 3: (2, 3), 4: (math.nan, 1), 5: (4, 1), 7: (3, 1)}
    with RunFolder.create(settings) as run:
        for iteration, (ocr, exact) in scores.items():
            run.append("evaluations", {"iteration": iteration, "ocr": ocr, "ocr_exact": exact})
        for iteration in range(1, 8):
            make(run.checkpoint(iteration))
        run.drop_old_checkpoints(settings.checkpoint)
        assert run.checkpoints() == kept


def test_the_best_is_found_and_asked_for(run_settings: Settings) -> None:
    with RunFolder.create(run_settings()) as run:
        run.append("evaluations", {"iteration": 1, "ocr": 0.5, "ocr_exact": 0.0})
        for iteration in (1, 2):
            make(run.checkpoint(iteration))
        assert run.find_checkpoint("best", None, lambda *what: None) == 1
        run.forget_after(0)
        run.append("evaluations", {"iteration": 0, "ocr": 0.5, "ocr_exact": 0.0})
        with pytest.raises(InputError, match="no checkpoint of .* was evaluated, so none is the best"):
            run.find_checkpoint("best", None, lambda *what: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint.keep_best": {}}, "give evaluation.every"),
        ({**EVALUATED, "prompts.held_out": None}, "held-out prompts"),
        ({**EVALUATED, "checkpoint.keep_best": {"reward": "beauty"}}, "keep_best.reward is 'beauty'; it must be one"),
    ],
)
def test_what_the_best_is_chosen_by_must_be_there(
    changes: dict[str, Any], message: str, run_settings: Settings
) -> None:
    with pytest.raises(InputError, match=message):
        run_settings(changes)


def test_evaluations_that_choose_the_best_make_a_checkpoint(run_settings: Settings) -> None:
    settings = run_settings({**EVALUATED, "evaluation.every": 4, "checkpoint.every": 6, "checkpoint.keep_every": 10})
    assert [iteration for iteration in range(1, 14) if settings.checkpoint_due(iteration)] == [4, 6, 8, 10, 12]


def test_nothing_is_left_of_a_checkpoint_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half-way"), written(tmp_path / "iteration-000001"):
        raise ValueError("half-way")
    assert not list(tmp_path.iterdir())


# A full disk --------------------------------------------------------------------------------------------------------


def full() -> None:
    """A real write to a device that is always full."""
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"0")


def test_a_full_disk_is_waited_for() -> None:
    attempts: list[int] = []
    told: list[BaseException] = []

    def write() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            full()
        return "written"

    assert when_there_is_room(write, 60, told.append, lambda: False) == "written"
    assert [is_full(error) for error in told] == [True, True]


def test_waiting_ends(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        when_there_is_room(full, 0, lambda error: None, lambda: False)
    with pytest.raises(OSError, match="No space left"):
        when_there_is_room(full, 3600, lambda error: None, lambda: True)
    with pytest.raises(OSError, match="No such file"):  # is no matter of room
        when_there_is_room(lambda: (tmp_path / "nothing").read_text(), 3600, lambda error: None, lambda: False)


def test_room_is_asked_for_beforehand(tmp_path: Path) -> None:
    check_free(tmp_path, 1)
    with pytest.raises(OSError, match=f"{2**60} bytes are needed and") as told:
        check_free(tmp_path, 2**60)
    assert told.value.errno == errno.ENOSPC


def test_other_libraries_errors_of_a_full_disk_are_seen(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as told, whole(tmp_path / "file"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert is_full(told.value)
    with pytest.raises(RuntimeError, match="something else"), whole(tmp_path / "file"):
        raise RuntimeError("something else")


@pytest.mark.parametrize("file", ["versions.json", "fingerprints.json", "train.txt", "recipe.yaml"])
def test_a_disk_full_at_the_start_is_told_and_nothing_stays(
    file: str, run_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = run_settings()
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda of, to: full() if Path(to).name == file else replace(of, to))
    with pytest.raises(InputError, match="^run folder .*/run has no space: No space left on device; make room, or"):
        RunFolder.create(settings).__enter__()
    assert not (tmp_path / "runs").exists()
