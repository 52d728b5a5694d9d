"""Ranks that share one network (ZeRO 3) sample in step, and give what other layouts give."""

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.torch
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.run import samples
from branchgrpo.cluster.run.evaluation import Evaluation
from branchgrpo.cluster.run.tree_record import write
from branchgrpo.proto.errors import Diverged, ProcessLost
from ray_runs import BASE, assert_same_trees, on_ray
from support import SMALL, Settings, Weights, assert_bit_equal, until

UNEVEN: dict[str, Any] = {
    **BASE,
    "execution": "ray",
    "learner.zero_stage": 3,
    "pools.learner": {**SMALL, "count": 2},
    "rollout.trees_per_task": 5,
}
"""24 trees in five tasks: the last has fewer trees and passes than the others, and no other beside it."""


def learned(loop: RayLoop, folder: Path, iterations: range) -> tuple[Weights, list[Evaluation]]:
    """The weights after some iterations, whose trees are recorded in `folder`, and the evaluations before each."""
    evaluations = []
    for i in iterations:
        evaluations.append(loop.evaluate(["012", "345", "678"]))
        report = loop.iterate(i)
        for record in report.trees:
            write(folder, record)
        if report.samples:
            samples.write(folder, i, report.samples)
        loop.save(folder / str(i))
    return safetensors.torch.load_file(folder / str(iterations[-1]) / "weights.safetensors"), evaluations


def test_ranks_in_step_give_what_separate_pools_give(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """Trees, evaluations and weights, also after a checkpoint was loaded; `tests/ranks.py` has other networks."""
    found = {}
    for placement in ("separate", "colocated"):
        settings, folder = run_settings({**UNEVEN, "placement": placement}), tmp_path / placement
        with closing(on_ray(settings, folder, head)) as loop:
            found[placement] = learned(loop, folder, range(1, 3))
            loop.load(folder / "1")
            again, _ = learned(loop, folder / "again", range(2, 3))
    (weights, evaluations), (expected, known) = found["colocated"], found["separate"]
    assert_bit_equal(weights, expected)
    assert_bit_equal(again, expected)
    for one, other in zip(evaluations, known, strict=True):
        np.testing.assert_equal([*one.media.looks()], [*other.media.looks()])
    assert_same_trees(tmp_path / "colocated", tmp_path / "separate")


COLOCATED = {**UNEVEN, "placement": "colocated"}


def test_a_rank_that_dies_in_step_ends_the_others(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """They wait for it in the middle of a pass. The run can be set up again."""
    with closing(on_ray(run_settings(COLOCATED), tmp_path / "run", head)) as loop:
        first, second = (rank["pid"] for rank in loop.status()["pools"]["learner"])
        left = [second]

        def kill(phase: str, share: float | None) -> None:
            if phase == "rollout" and left:
                os.kill(left.pop(), signal.SIGKILL)

        with pytest.raises(ProcessLost):
            loop.iterate(1, kill)
        assert not left
        loop.restart()
        until(lambda: not psutil.pid_exists(first), 60)
        assert loop.iterate(1).updates


def test_a_rank_that_fails_in_step_ends_the_run(run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = run_settings({**COLOCATED, "policy.adapter": "own_adapters:FailsOnRankOne"})
    with closing(on_ray(settings, tmp_path / "run", head)) as loop:
        ranks = [rank["pid"] for rank in loop.status()["pools"]["learner"]]
        with pytest.raises(Diverged, match="rank 1 has drawn"):
            loop.iterate(1)
    until(lambda: not any(map(psutil.pid_exists, ranks)), 60)
