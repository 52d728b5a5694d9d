"""Files are there whole or not at all."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from branchgrpo.proto.atomic_files import PARTIAL_PREFIX, must_be_new, remove, sweep, whole, write_new, write_text
from branchgrpo.proto.errors import InputError


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("links", [True, False])
def test_only_the_first_of_several_writers_writes(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_links(*paths: Path) -> None:
        raise PermissionError(errno.EPERM, "a file system without hard links")

    if not links:
        monkeypatch.setattr("os.link", without_links)
    together = Barrier(8)

    def write(number: int) -> bool:
        together.wait()
        try:
            write_new(tmp_path / "a" / "file", str(number))
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        wrote = list(threads.map(write, range(8)))
    assert sum(wrote) == 1
    assert (tmp_path / "a" / "file").read_text() == str(wrote.index(True))
    assert [found.name for found in (tmp_path / "a").iterdir()] == ["file"]


def test_sweep_removes_only_what_a_killed_process_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "kept", "")
    (tmp_path / "a" / f"{PARTIAL_PREFIX}12-folder").mkdir()
    (tmp_path / "a" / f"{PARTIAL_PREFIX}12-folder" / f"{PARTIAL_PREFIX}34-file").touch()
    (tmp_path / f"{PARTIAL_PREFIX}56-file").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]
    remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_a_folder_if_it_may(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with whole(tmp_path / "folder", replace_folder=True) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [found.name for found in (tmp_path / "folder").iterdir()] == ["new"]
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_folder_is_never_replaced_otherwise(kind: str, tmp_path: Path) -> None:
    kept = tmp_path / "results" / "kept"
    write_text(kept, "mine")

    def write() -> None:
        with whole(tmp_path / "results") as temporary:
            temporary.mkdir() if kind == "folder" else temporary.touch()

    with pytest.raises(FileExistsError):
        write()
    with pytest.raises(FileExistsError), whole(tmp_path / "later") as temporary:
        temporary.touch()
        (tmp_path / "later").mkdir()  # while it was written
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "later", "results"]


def test_what_is_to_be_written_must_be_new(tmp_path: Path) -> None:
    must_be_new(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for there in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(InputError, match="exists, and isn't overwritten"):
            must_be_new(there)
    with pytest.raises(InputError, match="can't be made: Not a directory"):
        must_be_new(tmp_path / "file" / "below")
