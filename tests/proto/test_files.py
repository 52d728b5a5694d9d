"""Files are there whole or not at all."""

from pathlib import Path

import pytest
from branchgrpo.proto.files import PARTIAL, remove, sweep, whole, write_text


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_sweep_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "kept", "")
    (tmp_path / "a" / f"{PARTIAL}12-folder").mkdir()
    (tmp_path / "a" / f"{PARTIAL}12-folder" / f"{PARTIAL}34-file").touch()
    (tmp_path / f"{PARTIAL}56-file").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]
    remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with whole(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [found.name for found in (tmp_path / "folder").iterdir()] == ["new"]
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]
