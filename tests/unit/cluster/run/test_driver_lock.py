"""Drivers of other hosts, and folders that can't be locked."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
from branchgrpo.cluster.run import driver_lock as locks
from branchgrpo.cluster.run.driver_lock import FILE, driver_lock, driver_of
from branchgrpo.proto.errors import InputError


def test_a_driver_elsewhere_is_alive_while_it_touches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system whose locks this host doesn't see."""
    monkeypatch.setattr(locks, "SILENT_SECONDS", 3)
    other = {"host": "elsewhere", "pid": 7, "since": time.time(), "boot": "another"}
    (tmp_path / FILE).write_text(json.dumps(other))
    ended = threading.Event()
    file = os.open(tmp_path / FILE, os.O_RDWR)
    beat = threading.Thread(target=locks._beat, args=(file, ended))
    beat.start()
    with pytest.raises(InputError, match="host elsewhere, process 7"):
        driver_lock(tmp_path).__enter__()
    assert (seen := driver_of(tmp_path))
    assert seen.alive
    ended.set()
    beat.join()
    os.close(file)
    with driver_lock(tmp_path):  # once it has been silent
        pass


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be locked: No such file"):
        driver_lock(tmp_path / "missing").__enter__()
