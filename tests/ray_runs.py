"""Runs on Ray over small models or stand-ins, and the weights that they learn."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import safetensors.torch
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.proto.prompts import read_prompts
from branchgrpo.proto.settings import RunSettings
from support import SMALL, Settings, Weights, assert_bit_equal

BASE = {
    "threads": 1,
    "prompts.per_iteration": 24,
    "rollout.trees_per_task": 4,
    "learner.window_trees": 5,
    "pools": {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"ocr": {**SMALL, "deterministic": True}}},
}
ITERATIONS = 3


def trained(loop: Any, settings: RunSettings, folder: Path, during: Callable[[int], None] = lambda i: None) -> Weights:
    """Weights after some iterations."""
    with closing(loop):
        for i in range(1, ITERATIONS + 1):
            during(i)
            report = loop.iterate(i)
            assert report.forward_passes == 24 * settings.schedule.build().forward_passes
        loop.save(folder)
    return safetensors.torch.load_file(folder / "weights.safetensors")


def on_ray(settings: RunSettings, folder: Path, head: str, prompts: list[str] | None = None) -> RayLoop:
    """A run over some prompts, or those of the recipe."""
    folder.mkdir(parents=True)
    return RayLoop(settings, folder, prompts or read_prompts(settings.prompts.train, "prompts.train"), head)


def stand_in(changes: dict[str, Any], policy: str = "InstantPolicy", scorer: str = "instant_scorer") -> dict[str, Any]:
    """Settings of a run whose policy and reward model sleep."""
    return {
        **BASE,
        "execution": "ray",
        "policy.adapter": f"branchgrpo.benchmarks.support.stand_ins:{policy}",
        "rewards": {"constant": {"scorer": f"branchgrpo.benchmarks.support.stand_ins:{scorer}"}},
        "pools": {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"constant": SMALL}},
        **changes,
    }


def assert_as_plain(changes: dict[str, Any], plain: Weights, run_settings: Settings, folder: Path, head: str) -> None:
    """A run on Ray with some changes learns the weights of one in one process, bit by bit."""
    settings = run_settings({**BASE, "execution": "ray", **changes})
    loop = on_ray(settings, folder / "run", head)
    assert loop.cut_prompts(["123", "1234567890"]) == ["1234567890"]
    assert_bit_equal(trained(loop, settings, folder / "checkpoint"), plain)
