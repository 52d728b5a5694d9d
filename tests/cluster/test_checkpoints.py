"""Checkpoints are whole, or the one before is taken; a full disk is waited for."""

import errno
import os
from pathlib import Path

import pytest
from branchgrpo.cluster.checkpoints import MANIFEST, DamagedCheckpoint, check, size, written
from branchgrpo.cluster.run_folder import RunFolder
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.files import check_free, is_full, when_there_is_room, whole


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


def test_the_one_before_a_damaged_checkpoint_is_taken_and_it_is_told(tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match=r"no checkpoint .* is whole; .* Remove the run folder to begin anew"):
        run.newest_whole_checkpoint(lambda *what: told.append(what))


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
