"""Ray for tests: one head for all of them, ended by its process id."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
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
    """End a `ray start --block` and what it has started, which alone takes it half a minute."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        for child in [process, *children]:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                child.kill()
        process.wait()


@pytest.fixture
def store_bytes() -> Callable[[], int]:
    """Tells the bytes in the object store of the node that this process is connected to."""

    def used() -> int:
        import ray
        from ray._private.internal_api import node_stats

        (node,) = ray.nodes()
        stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
        return int(stats.store_stats.object_store_bytes_used)

    return used


def reachable(port: int, seconds: float = 60) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which scorers note the faults that they have had."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def head(faults: Path) -> Iterator[str]:
    """Address of a Ray with more CPUs than there are, so that pools of any size find room."""
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)  # for the scorers with faults
    os.environ.update({"PYTHONPATH": here, "BRANCHGRPO_TEST_FAULTS": str(faults)})
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
        del os.environ["PYTHONPATH"]
        sys.path.remove(here)
