"""Runs on Ray over small models or stand-ins, and the weights that they learn."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.run import samples
from branchgrpo.cluster.run.tree_record import read, recorded_trees, write
from branchgrpo.proto.learned_tree import EdgeState
from branchgrpo.proto.prompts import read_prompts
from branchgrpo.proto.settings import RunSettings
from support import SMALL, Settings, Weights, assert_bit_equal, weights

BASE = {
    "threads": 1,
    "prompts.per_iteration": 24,
    "rollout.trees_per_task": 4,
    "learner.window_trees": 5,
    "logging.trees_every": 1,
    "logging.trees": 24,
    "logging.samples_every": 2,
    "pools": {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"ocr": {**SMALL, "deterministic": True}}},
}
ITERATIONS = 3


def trained(loop: Any, settings: RunSettings, folder: Path, during: Callable[[int], None] = lambda i: None) -> Weights:
    """Weights after some iterations, whose trees and samples are recorded beside `folder`."""
    with closing(loop):
        for i in range(1, ITERATIONS + 1):
            during(i)
            report = loop.iterate(i)
            for record in report.trees:
                write(folder.parent, record)
            if report.samples:
                samples.write(folder.parent, i, report.samples)
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


def assert_same_trees(one: Path, other: Path) -> None:
    """Two runs have recorded the same trees and samples, bit by bit, trees that were trained on among it."""
    first, second = ({place: vars(read(path)) for place, path in recorded_trees(run).items()} for run in (one, other))
    np.testing.assert_equal(first, second)
    assert any((record["state"] == EdgeState.TRAINED).any() for record in first.values())
    kept, others = ({i: _samples(run, i) for i in samples.sampled_iterations(run)} for run in (one, other))
    np.testing.assert_equal(kept, others)
    assert kept


def _samples(run: Path, iteration: int) -> dict[str, Any]:
    return vars(samples.parse((run / samples.samples_file(iteration)).read_bytes()))


def assert_as_plain(changes: dict[str, Any], plain_run: Path, run_settings: Settings, folder: Path, head: str) -> None:
    """A run on Ray with some changes learns the weights of one in one process, and records its trees, bit by bit."""
    settings = run_settings({**BASE, "execution": "ray", **changes})
    loop = on_ray(settings, folder / "run", head)
    assert loop.cut_prompts(["123", "1234567890"]) == ["1234567890"]
    assert_bit_equal(trained(loop, settings, folder / "checkpoint"), weights(plain_run))
    assert_same_trees(folder, plain_run)


def environment_of_its_own(run_settings: Settings, environment: dict[str, object]) -> RunSettings:
    """Settings of a run with a reward `marked`, of the package `marker`, in this runtime environment."""
    pools = {**BASE["pools"], "rewards": {"marked": {**SMALL, "runtime_env": environment}}}
    rewards = {"marked": {"function": "marker:score"}}
    return run_settings({**BASE, "execution": "ray", "rewards": rewards, "pools": pools, "prompts.per_iteration": 4})
