"""Ray for tests: one head for all of them, ended by its process id."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from branchgrpo.cluster.commands import status
from support import ray_head


@pytest.fixture(autouse=True)
def just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a command has from its start begins with the test."""
    age = time.time() - psutil.Process().create_time()
    monkeypatch.setattr(status, "ALL_SECONDS", status.ALL_SECONDS + age)


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
    try:
        with ray_head(cpus=16, store_bytes=500_000_000) as address:
            yield address
    finally:
        del os.environ["PYTHONPATH"]
        sys.path.remove(here)
