"""Ray for tests: one head for all of them, ended by its process id."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def started(*arguments: str) -> subprocess.Popen[bytes]:
    """`ray start ARGUMENTS --block`, in a session of its own."""
    return subprocess.Popen(
        [RAY, "start", "--block", "--disable-usage-stats", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a `ray start --block` and what it has started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def reachable(port: int, seconds: float = 60) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="session")
def head() -> Iterator[str]:
    """Address of a Ray with more CPUs than there are, so that pools of any size find room."""
    port = free_port()
    process = started(
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--num-cpus=16",
        "--include-dashboard=false",
        "--object-store-memory=500000000",
    )
    try:
        assert reachable(port)
        yield f"127.0.0.1:{port}"
    finally:
        end(process)
