"""A run folder has one driver, known by name, until that dies."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from branchgrpo.cluster.run.driver_lock import driver_lock, driver_of, must_be_idle
from branchgrpo.proto.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from branchgrpo.cluster.run.driver_lock import driver_lock
with driver_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_driver_is_refused_until_the_first_is_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    seen = driver_of(tmp_path)
    assert seen
    assert (seen.alive, seen.driver.pid, seen.driver.host) == (True, holder.pid, socket.gethostname())
    with pytest.raises(InputError, match=f"in use by another driver .*process {holder.pid}, since 20"):
        driver_lock(tmp_path).__enter__()
    with pytest.raises(InputError, match=f"in use by another driver .*process {holder.pid}, since 20"):
        must_be_idle(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    seen = driver_of(tmp_path)
    assert seen
    assert (seen.alive, seen.driver.pid) == (False, holder.pid)
    must_be_idle(tmp_path)
    with driver_lock(tmp_path):
        assert (mine := driver_of(tmp_path))
        assert (mine.alive, mine.driver.pid) == (True, os.getpid())
    assert driver_of(tmp_path) is None
