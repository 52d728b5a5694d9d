"""The loop on Ray gives what the plain loop gives, bit by bit, whatever happens to its workers."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
import safetensors.torch
import torch
from branchgrpo.cluster.plain import PlainLoop
from branchgrpo.cluster.prompts import prompts_of, read_prompts
from branchgrpo.cluster.ray_loop import RayLoop
from branchgrpo.proto.settings import RunSettings

Settings = Callable[..., RunSettings]
SMALL = {"cpus": 0.5, "threads": 1}
BASE = {
    "threads": 1,
    "prompts.per_iteration": 24,
    "rollout.trees_per_task": 4,
    "learner.window_trees": 5,
    "pools": {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"ocr": {**SMALL, "deterministic": True}}},
}
ITERATIONS = 3


def trained(
    loop: Any, settings: RunSettings, folder: Path, during: Callable[[int], None] = lambda i: None
) -> dict[str, torch.Tensor]:
    """Weights after some iterations."""
    prompts = read_prompts(settings.prompts.train, "prompts.train")
    drawn = [prompts_of(i, prompts, settings.prompts.per_iteration, settings.seed) for i in range(1, ITERATIONS + 2)]
    with closing(loop):
        for i in range(1, ITERATIONS + 1):
            during(i)
            report = loop.iterate(i, drawn[i - 1], drawn[i] if i < ITERATIONS else None)
            assert report.forward_passes == 24 * settings.schedule.build().forward_passes
        loop.save(folder)
    return safetensors.torch.load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def plain(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("plain")
    settings = settings_in(folder, BASE)
    threads = torch.get_num_threads()
    try:
        return trained(PlainLoop(settings), settings, folder / "checkpoint")
    finally:
        torch.set_num_threads(threads)


def on_ray(settings: RunSettings, folder: Path, head: str) -> RayLoop:
    folder.mkdir(parents=True)
    return RayLoop(settings, folder, head)


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"pools.rollout_workers": SMALL},
        {"pools.rollout_workers": {**SMALL, "count": 3}, "rollout.trees_in_flight": 8, "rollout.parts_in_scoring": 2},
        {"placement": "colocated"},
    ],
    ids=["one worker", "three workers and little room", "colocated"],
)
def test_weights_are_bit_equal_to_the_plain_loop_s(
    changes: dict[str, Any], plain: dict[str, torch.Tensor], run_settings: Settings, tmp_path: Path, head: str
) -> None:
    settings = run_settings({**BASE, "execution": "ray", **changes})
    loop = on_ray(settings, tmp_path / "run", head)
    assert_bit_equal(trained(loop, settings, tmp_path / "checkpoint"), plain)


def test_weights_are_bit_equal_though_a_worker_is_killed(
    plain: dict[str, torch.Tensor], run_settings: Settings, tmp_path: Path, head: str
) -> None:
    settings = run_settings({**BASE, "execution": "ray", "pools.rollout_workers": {**SMALL, "count": 2}})
    loop = on_ray(settings, tmp_path / "run", head)
    killed: list[int] = []

    def kill_one(iteration: int) -> None:
        def wait_and_kill() -> None:
            while not killed:
                status = ray.get(loop._controller.status.remote())
                busy = [p["pid"] for p in status["pools"]["rollout_workers"] if p["state"] == "busy"]
                if busy:
                    os.kill(busy[0], signal.SIGKILL)
                    killed.append(busy[0])
                time.sleep(0.01)

        if iteration == 2:
            threading.Thread(target=wait_and_kill).start()

    assert_bit_equal(trained(loop, settings, tmp_path / "checkpoint", kill_one), plain)
    assert killed
