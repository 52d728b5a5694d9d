"""Ray clusters that are started for a purpose, and ended with it."""

import os

import psutil
import pytest
import ray
from branchgrpo.cluster.on_ray.address import RAY_ADDRESS
from branchgrpo.cluster.on_ray.connect import connected


def test_no_process_of_a_ray_outlives_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither actors, nor what they have started, nor Ray's own."""

    @ray.remote(num_cpus=0)
    class Parent:
        def pids(self) -> list[int]:
            return [os.getpid(), psutil.Popen(["sleep", "300"]).pid]

    monkeypatch.delenv(RAY_ADDRESS, raising=False)
    before = psutil.Process().children(recursive=True)
    with connected(None) as own:
        assert own
        parent = Parent.remote()
        pids = ray.get(parent.pids.remote())
        started = [one for one in psutil.Process().children(recursive=True) if one not in before]
        assert {*pids} < {one.pid for one in started}
    assert psutil.wait_procs(started, timeout=30)[1] == []
