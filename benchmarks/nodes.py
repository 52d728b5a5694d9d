"""Nodes of a Ray cluster as processes of this machine, each ended by its process id."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def started(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`ray start ARGUMENTS --block`, in a session of its own."""
    return subprocess.Popen(
        [RAY, "start", "--block", "--disable-usage-stats", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a `ray start --block` and what it has started, which alone takes it half a minute."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
    process.wait()


def reachable(port: int, seconds: float = 60) -> bool:
    """Whether somebody listens on a port of this machine, by and by."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False
