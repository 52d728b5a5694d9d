"""A run that loses its controller or its driver goes on as it was, and touches nothing of others."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import psutil
import pytest
import ray
from branchgrpo.benchmarks.support.local_cluster import end, free_port, reachable, started
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.on_ray.reward_deployment import LEASE_SECONDS, start_serve
from branchgrpo.proto.errors import InputError, ProcessLost
from ray import serve
from support import SMALL, Settings, assert_bit_equal, command, ray_head, recipe_in, until, weights

STAND_IN: dict[str, Any] = {
    "execution": "ray",
    "threads": 1,
    "policy.adapter": "branchgrpo.benchmarks.support.stand_ins:InstantPolicy",
    "rewards": {"constant": {"scorer": "branchgrpo.benchmarks.support.stand_ins:instant_scorer"}},
    "pools": {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"constant": SMALL}},
}


def http_port(folder: Path) -> int | None:
    return urlparse(json.loads((folder / "ray.json").read_text())["http"]).port


@pytest.mark.parametrize("fixed", [True, False], ids=["port fixed", "any port"])
def test_port_and_sizes_outlive_the_controller(fixed: bool, run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = run_settings({**STAND_IN, **({"logging.metrics_port": free_port()} if fixed else {})})
    folder = tmp_path / "run"
    folder.mkdir()
    with closing(RayLoop(settings, folder, ["1"], head)) as loop:
        before = http_port(folder)
        assert before == (settings.logging.metrics_port or before)
        loop.scale(2, {"constant": 2})
        loop.iterate(1)
        os.kill(loop.status()["pid"], signal.SIGKILL)
        with pytest.raises(ProcessLost):
            loop.iterate(2)
        loop.restart()
        assert http_port(folder) == before
        until(lambda: len(loop.status()["pools"]["rollout_workers"]) == 2)
        until(lambda: loop.status()["pools"]["rewards"]["constant"].get("RUNNING") == 2)

        (tmp_path / "second").mkdir()
        with pytest.raises(InputError, match="a run named 'run' is running on this cluster"):
            RayLoop(settings, tmp_path / "second", ["1"], head)
        assert loop.status()["pools"]["rewards"]["constant"].get("RUNNING") == 2
        assert (folder / "ray.json").exists()


@pytest.mark.timeout(900)
def test_a_run_that_fills_the_cluster_survives_its_driver(
    run_settings: Settings, settings_in: Settings, tmp_path: Path
) -> None:
    pools = {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"ocr": {"cpus": 1, "threads": 1}}}
    changes = {"threads": 1, "iterations": 4, "resume": "auto", "pools": pools}
    plain = settings_in(tmp_path, {**changes, "name": "plain"})
    settings = run_settings({**changes, "execution": "ray"})
    subprocess.run(command("train", recipe_in(tmp_path, plain)), check=True, capture_output=True)
    with ray_head(cpus=2) as address:
        train = command("train", recipe_in(tmp_path, settings), "--address", address)
        run = settings.runs / settings.name
        with subprocess.Popen(train, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
            until(lambda: (run / "metrics.jsonl").exists())
            driver.kill()
        done = subprocess.run(train, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]

    assert_bit_equal(weights(settings.runs / "plain", 4), weights(run, 4))


def test_what_a_run_leaves_when_it_ends_is_nothing(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """Neither do those that had no room."""
    settings = run_settings({**STAND_IN, "pools.learner": {"cpus": 100}})
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"pools.learner needs 1 x 100 CPU"):
        RayLoop(settings, tmp_path / "run", ["1"], head)
    assert not list((tmp_path / "run").iterdir())
    ray.init(head, namespace="branchgrpo", log_to_driver=False)
    try:
        assert not [name for name in serve.status().applications if settings.name in name]
        until(lambda: not ray.util.list_named_actors())
    finally:
        ray.shutdown()


@pytest.mark.timeout(900)
def test_what_killed_runs_leave_ends_by_itself_or_is_cleaned(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """The reward models of a run that goes on, and what others serve, stay."""
    runs = run_settings().runs

    def cleaned(*options: str) -> str:
        clean = command("clean", runs, "--address", head, *options)
        return subprocess.run(clean, check=True, capture_output=True, text=True).stdout

    def train(name: str) -> subprocess.Popen[bytes]:
        endless = run_settings({**STAND_IN, "name": name, "iterations": 10**6, "checkpoint.every": 10**6})
        train = command("train", recipe_in(tmp_path, endless), "--address", head)
        with (tmp_path / f"{name}.log").open("w") as log:
            driver = subprocess.Popen(train, stdout=log, stderr=log)
        until(lambda: (runs / name / "metrics.jsonl").exists() or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / f"{name}.log").read_text()[-3000:]
        return driver

    @serve.deployment
    class Theirs:
        pass

    with ExitStack() as drivers:
        live = drivers.enter_context(train("live"))
        drivers.callback(live.kill)
        gone = train("gone")
        assert "nothing is left" in cleaned()
        ray.init(head, namespace="branchgrpo", log_to_driver=False)
        drivers.callback(ray.shutdown)
        start_serve()
        serve.run(Theirs.bind(), name="branchgrpo", route_prefix=None)
        drivers.callback(serve.delete, "branchgrpo")
        gone.kill()
        gone.wait()
        removed = cleaned("--yes").splitlines()
        assert removed == ["removed: reward models of 'gone'", f"removed: {runs / 'gone' / 'ray.json'}"]
        assert not (runs / "gone" / "ray.json").exists()
        shutil.rmtree(runs / "gone")
        again = train("gone")
        again.kill()
        again.wait()
        assert "branchgrpo-gone" in serve.status().applications
        assert f"left by a run that is gone: {runs / 'gone' / 'ray.json'}" in cleaned()
        until(lambda: "branchgrpo-gone" not in serve.status().applications, LEASE_SECONDS + 60)
        assert {"branchgrpo", "branchgrpo-live"} <= serve.status().applications.keys()
        assert live.poll() is None


@pytest.mark.timeout(600)
def test_a_driver_needs_neither_its_directory_nor_torch(run_settings: Settings, tmp_path: Path) -> None:
    """The directory vanishes, then the controller: all processes are set up again, on a Ray of the run's own."""
    pools = {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"ocr": SMALL}}
    settings = run_settings(
        {"execution": "ray", "threads": 1, "iterations": 6, "pools": pools, "logging.samples_every": 2}
    )
    recipe, run, work = recipe_in(tmp_path, settings), settings.runs / settings.name, tmp_path / "work"
    work.mkdir()
    code = (
        "import sys\nfrom branchgrpo.cluster.cli import main\n"
        f"sys.argv = ['branchgrpo', 'train', {str(recipe)!r}]\n"
        "try:\n    main()\nfinally:\n    print('TORCH' if 'torch' in sys.modules else 'LIGHT')\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([sys.executable, "-c", code], cwd=work, stdout=log, stderr=log, env=env)
    try:
        until(lambda: (run / "metrics.jsonl").exists() or driver.poll() is not None)
        work.rmdir()
        titles = {child.pid: " ".join(child.cmdline()) for child in psutil.Process(driver.pid).children(recursive=True)}
        (controller,) = [pid for pid, title in titles.items() if title.startswith(("ray::Controller", "ray::controll"))]
        os.kill(controller, signal.SIGKILL)
        assert driver.wait(400) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        driver.kill()
    told = (tmp_path / "log").read_text()
    assert "restarting all processes" in told
    assert told.rstrip().endswith("LIGHT")


def test_a_node_is_drained_only_if_it_is_clear_which(head: str, tmp_path: Path) -> None:
    port = free_port()
    size = ("--num-cpus=1", "--object-store-memory=100000000", "--include-dashboard=false")
    first = started("--head", f"--port={port}", "--node-name=one", *size)
    second = None

    def drained(*options: str) -> subprocess.CompletedProcess[str]:
        drain = command("drain", "--seconds", "1", *options)
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return subprocess.run(drain, env=env, capture_output=True, text=True)

    try:
        assert reachable(port)
        at = ("--address", f"127.0.0.1:{port}")
        second = started(f"--address=127.0.0.1:{port}", "--node-name=two", *size[:2])
        with connected(f"127.0.0.1:{port}"):
            until(lambda: len(ray.nodes()) == 2)
        refused = drained(*at)
        assert refused.returncode == 2
        assert "has 2 nodes on this machine; name one with --node-name: there are one, two" in refused.stderr
        refused = drained()  # there is the head of other tests, too
        assert refused.returncode == 2
        assert "several Ray clusters run on this machine" in refused.stderr
        done = drained(*at, "--node-name", "two")
        assert done.stdout.strip() == f"node two of the cluster at 127.0.0.1:{port} is drained"
        assert "no node named 'three'" in drained(*at, "--node-name", "three").stderr
    finally:
        for node in filter(None, (second, first)):
            end(node)
