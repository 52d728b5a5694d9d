"""A run that loses its controller or its driver goes on as it was, and touches nothing of others."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import ray
import safetensors.torch
import torch
from branchgrpo.benchmarks.nodes import end, free_port, reachable, started
from branchgrpo.cluster.operate import reserve_port
from branchgrpo.cluster.ray_loop import RayLoop
from branchgrpo.proto.errors import InputError, ProcessLost
from branchgrpo.proto.recipe import dump_recipe
from branchgrpo.proto.settings import RunSettings
from ray import serve

Settings = Callable[..., RunSettings]
SMALL = {"cpus": 0.5, "threads": 1}
STAND_IN: dict[str, Any] = {
    "execution": "ray",
    "threads": 1,
    "policy.adapter": "branchgrpo.benchmarks.stand_ins:InstantPolicy",
    "rewards": {"constant": {"scorer": "branchgrpo.benchmarks.stand_ins:instant_scorer"}},
    "pools": {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"constant": SMALL}},
}


def until(reached: Callable[[], bool], seconds: float = 200) -> None:
    limit = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.2)


@contextmanager
def small_head(cpus: float) -> Iterator[str]:
    """Address of a Ray with so many CPUs."""
    port = free_port()
    size = (f"--num-cpus={cpus:g}", "--object-store-memory=200000000", "--include-dashboard=false")
    process = started("--head", "--node-ip-address=127.0.0.1", f"--port={port}", *size)
    try:
        assert reachable(port)
        yield f"127.0.0.1:{port}"
    finally:
        end(process)


def http_port(folder: Path) -> int | None:
    return urlparse(json.loads((folder / "ray.json").read_text())["http"]).port


def test_a_reserved_port_is_for_one_listener_and_for_nobody_else() -> None:
    with closing(reserve_port("127.0.0.1", 0, 0)) as held:
        port = held.getsockname()[1]
        reserve_port("127.0.0.1", port, 0).close()
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
        listener = socket.create_server(("127.0.0.1", port))
        with pytest.raises(InputError, match=f"logging.metrics_port is {port} .*in use"):
            reserve_port("127.0.0.1", port, 0.5)
        threading.Timer(0.5, listener.close).start()
        reserve_port("127.0.0.1", port, 30).close()


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [True, False], ids=["port fixed", "any port"])
def test_port_and_sizes_outlive_the_controller(fixed: bool, run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = run_settings({**STAND_IN, **({"logging.metrics_port": free_port()} if fixed else {})})
    folder = tmp_path / "run"
    folder.mkdir()
    with closing(RayLoop(settings, folder, head)) as loop:
        before = http_port(folder)
        assert before == (settings.logging.metrics_port or before)

        def status() -> dict[str, Any]:
            return ray.get(loop._controller.status.remote())

        ray.get(loop._controller.scale.remote(2, {"constant": 2}))
        loop.iterate(1, ["1"] * 4, None)
        os.kill(status()["pid"], signal.SIGKILL)
        with pytest.raises(ProcessLost):
            loop.iterate(2, ["1"] * 4, None)
        loop.restart()
        assert http_port(folder) == before
        until(lambda: len(status()["pools"]["rollout_workers"]) == 2)
        until(lambda: status()["pools"]["rewards"]["constant"].get("RUNNING") == 2)

        (tmp_path / "second").mkdir()
        with pytest.raises(InputError, match="a run named 'run' is going on on this cluster"):
            RayLoop(settings, tmp_path / "second", head)
        assert status()["pools"]["rewards"]["constant"].get("RUNNING") == 2
        assert (folder / "ray.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_fills_the_cluster_goes_on_when_its_driver_was_killed(
    run_settings: Settings, settings_in: Settings, tmp_path: Path
) -> None:
    pools = {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"ocr": {"cpus": 1, "threads": 1}}}
    changes = {"threads": 1, "iterations": 4, "resume": "auto", "pools": pools}
    plain = settings_in(tmp_path, {**changes, "name": "plain"})
    settings = run_settings({**changes, "execution": "ray"})
    for name, recipe in (("plain", plain), ("ray", settings)):
        (tmp_path / f"{name}.yaml").write_text(dump_recipe(recipe))
    train = [sys.executable, "-m", "branchgrpo", "train"]
    subprocess.run([*train, str(tmp_path / "plain.yaml")], check=True, capture_output=True)
    with small_head(2) as address:
        command = [*train, str(tmp_path / "ray.yaml"), "--address", address]
        run = settings.runs / settings.name
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
            until(lambda: (run / "metrics.jsonl").exists())
            driver.kill()
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(folder / "checkpoints" / "iteration-000004" / "weights.safetensors")

    expected, found = weights(settings.runs / "plain"), weights(run)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_what_a_run_leaves_when_it_ends_is_nothing(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """Neither do those that had no room."""
    settings = run_settings({**STAND_IN, "pools.learner": {"cpus": 100}})
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"pools.learner needs 1 x 100 CPU"):
        RayLoop(settings, tmp_path / "run", head)
    assert not list((tmp_path / "run").iterdir())
    ray.init(head, namespace="branchgrpo", log_to_driver=False)
    try:
        assert not [name for name in serve.status().applications if settings.name in name]
        until(lambda: not ray.util.list_named_actors())
    finally:
        ray.shutdown()
