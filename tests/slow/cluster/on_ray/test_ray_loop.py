"""The loop on Ray gives what the plain loop gives, bit by bit, whatever happens to its workers."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.prompt_focus import FILE
from branchgrpo.cluster.run.tree_record import read, recorded_trees
from branchgrpo.proto.errors import InputError, RunFailed
from ray_runs import BASE, ITERATIONS, assert_as_plain, on_ray, stand_in, trained
from support import SMALL, Settings, Weights, assert_bit_equal, prompts_of

LITTLE_ROOM = {"rollout.max_trees_in_flight": 8, "rollout.max_parts_in_scoring": 2}


@pytest.mark.parametrize(
    "changes",
    [{"pools.rollout_workers": {**SMALL, "count": 3}, **LITTLE_ROOM}, {"placement": "colocated"}],
    ids=["three workers with little room", "colocated"],
)
def test_processes_and_their_room_change_no_weight(
    changes: dict[str, Any], plain_run: Path, run_settings: Settings, tmp_path: Path, head: str
) -> None:
    assert_as_plain(changes, plain_run, run_settings, tmp_path, head)


def test_other_numbers_of_learner_ranks_go_on_from_a_checkpoint(
    plain: Weights, plain_run: Path, run_settings: Settings, tmp_path: Path, head: str
) -> None:
    """One, then three, then two, which share everything, train as one does within rounding, and tell of the same."""
    saved = tmp_path / "run [1]+lr=3"
    for iteration, ranks in enumerate((1, 3, 2), 1):
        pool = {**SMALL, "count": ranks}
        settings = run_settings({**BASE, "execution": "ray", "learner.zero_stage": 3, "pools.learner": pool})
        with closing(on_ray(settings, tmp_path / f"{ranks} ranks", head)) as loop:
            if iteration > 1:
                loop.load(saved / str(iteration - 1))
            for record in loop.iterate(iteration).trees:
                same = read(recorded_trees(plain_run)[iteration, record.tree])
                np.testing.assert_array_equal(record.state, same.state)
                np.testing.assert_allclose(record.ratio, same.ratio, rtol=1e-3)
            loop.save(saved / str(iteration))
    found = safetensors.torch.load_file(saved / str(ITERATIONS) / "weights.safetensors")
    assert found.keys() == plain.keys()
    differences = torch.cat([(found[name] - plain[name]).abs().flatten() for name in plain])
    # AdamW divides a gradient by its own size: where that is near 0, its last bits decide.
    rate = settings.learner.optimizer.learning_rate
    assert (differences > 0.03 * rate).float().mean() < 0.01


def test_weights_are_bit_equal_though_a_worker_is_killed(
    plain: Weights, run_settings: Settings, tmp_path: Path, head: str
) -> None:
    settings = run_settings({**BASE, "execution": "ray", "pools.rollout_workers": {**SMALL, "count": 2}})
    loop = on_ray(settings, tmp_path / "run", head)
    seen: list[list[int]] = []
    killed: list[int] = []
    gone: list[int] = []  # when the last iteration begins: on a busy machine the one is killed in that

    def workers() -> list[dict[str, Any]]:
        return loop.status()["pools"]["rollout_workers"]

    def disturb(iteration: int) -> None:
        gone[:] = killed
        seen.append([worker["pid"] for worker in workers()])
        if iteration == 2:
            threading.Thread(target=kill_a_busy_one).start()
        if iteration == 3:
            loop.scale(1, {"ocr": 2})

    def kill_a_busy_one() -> None:
        while not (busy := [worker["pid"] for worker in workers() if worker["state"] == "busy"]):
            time.sleep(0.01)
        os.kill(busy[0], signal.SIGKILL)
        killed.append(busy[0])

    assert_bit_equal(trained(loop, settings, tmp_path / "checkpoint", disturb), plain)
    assert len(seen[0]) == len(seen[1]) == len(seen[2]) == 2
    assert set(seen[0]) - {""} <= set(seen[1])  # one may still be starting
    assert len(killed) == 1
    assert {*seen[1]} - {*seen[2], ""} == {*gone}, "it alone was replaced"


def test_scaling_down_drains_and_scaling_up_adds(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """Workers that leave finish their task: no task runs twice, though it would change nothing but the time."""
    settings = run_settings(stand_in({"pools.rollout_workers": {**SMALL, "count": 2}}, "SleepingPolicy"))
    with closing(on_ray(settings, tmp_path / "run", head)) as loop, ThreadPoolExecutor() as thread:

        def status() -> dict[str, Any]:
            return loop.status()["pools"]

        report = thread.submit(loop.iterate, 1)
        while sum(worker["state"] == "busy" for worker in status()["rollout_workers"]) < 2:
            time.sleep(0.01)
        before = status()["rollout_workers"]
        loop.scale(1, {})
        assert [worker["state"] for worker in status()["rollout_workers"]] == ["busy", "draining"]
        while len(status()["rollout_workers"]) > 1:
            time.sleep(0.01)
        loop.scale(3, {"constant": 2})
        pids = [worker["pid"] for worker in status()["rollout_workers"]]
        assert len(pids) == 3
        assert before[0]["pid"] in pids
        assert before[1]["pid"] not in pids
        assert report.result().rewards["constant"].size == 24 * settings.schedule.build().leaves
        while status()["rewards"]["constant"].get("RUNNING") != 2:
            time.sleep(0.1)
        with pytest.raises(InputError, match="--reward names 'beauty'; this run has constant"):
            loop.scale(None, {"beauty": 2})


def test_a_reward_model_that_dies_or_raises_is_asked_again(
    plain: Weights, run_settings: Settings, tmp_path: Path, head: str, faults: Path
) -> None:
    settings = run_settings({**BASE, "execution": "ray", "rewards.ocr.scorer": "faulty_scorers:faults_happen_once"})
    settings = settings.model_copy(
        update={
            "rewards": {**settings.rewards, "ocr_exact": settings.rewards["ocr"].model_copy(update={"weight": 0.0})}
        }
    )
    loop = on_ray(settings, tmp_path / "run", head)
    assert_bit_equal(trained(loop, settings, tmp_path / "checkpoint"), plain)
    assert sorted(path.name for path in faults.iterdir()) == ["died", "raised"]


def test_trees_without_scores_are_left_out_up_to_a_limit(run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = run_settings(
        {
            **BASE,
            "execution": "ray",
            "rollout.max_unscored_fraction": 0.05,
            "rewards": {"ocr": {"scorer": "faulty_scorers:cannot_read_666"}},
        }
    )
    leaves = settings.schedule.build().leaves
    first, second = (prompts_of(i, [f"{k}" for k in range(48)], 24, settings.seed) for i in (1, 2))
    unreadable = {first[0], *second[:2]}
    prompts = ["666" if f"{k}" in unreadable else "123" for k in range(48)]
    with closing(on_ray(settings, tmp_path / "run", head, prompts)) as loop:
        report = loop.iterate(1)
        assert report.left_out == 1
        assert len(report.rewards["ocr"]) == 23 * leaves
        assert np.isfinite(report.rewards["ocr"]).all()
        with pytest.raises(RunFailed, match=r"'ocr' gave no score for request 'run/2/.*666 can't be read"):
            loop.iterate(2)


def test_prompts_that_teach_are_drawn_alike(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """However the scores of an iteration come in, the next one has the same prompts."""
    settings = run_settings({**BASE, "prompts.focus": 0.5})
    prompts = [f"{number:03d}" for number in range(60)]
    expected = trained(InProcessLoop(settings, prompts), settings, tmp_path / "plain")
    on_workers = settings.model_copy(update={"execution": "ray"})
    loop = on_ray(on_workers, tmp_path / "run", head, prompts)
    assert_bit_equal(trained(loop, on_workers, tmp_path / "checkpoint"), expected)
    plain, ray_s = (json.loads((tmp_path / name / FILE).read_text()) for name in ("plain", "checkpoint"))
    assert {(place, number) for place, number, _ in plain["seen"]} == {(p, n) for p, n, _ in ray_s["seen"]}


def test_a_run_that_samples_ahead_goes_on_bit_by_bit(run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = run_settings({**BASE, "execution": "ray", "staleness": 1, "iterations": 3, "prompts.focus": 0.5})
    prompts = [f"{k:03d}" for k in range(100)]

    def iterate(loop: RayLoop, iterations: range) -> list[float]:
        return [loop.iterate(i).updates[0].logprob_abs_diff for i in iterations]

    with closing(on_ray(settings, tmp_path / "run", head, prompts)) as loop:
        differences = iterate(loop, range(1, 3))
        loop.save(tmp_path / "half")
        differences += iterate(loop, range(3, 4))
        loop.save(tmp_path / "whole")
    # The first iteration is on-policy; later ones are sampled with weights that are one iteration old.
    assert differences[0] < 1e-5
    assert differences[1] > 1e-5
    with closing(on_ray(settings, tmp_path / "resumed", head, prompts)) as loop:
        loop.load(tmp_path / "half")
        assert iterate(loop, range(3, 4)) == differences[2:]
        loop.save(tmp_path / "again")
    once, again = (safetensors.torch.load_file(tmp_path / n / "weights.safetensors") for n in ("whole", "again"))
    assert_bit_equal(once, again)


def test_a_resumed_run_may_begin_and_cease_to_sample_ahead(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """Its first iteration is on-policy. What it had sampled ahead is dropped when it ceases."""
    prompts = [f"{k:03d}" for k in range(100)]
    stale = []
    for staleness, iterations in ((0, range(1, 3)), (1, range(3, 5)), (0, range(5, 6))):
        settings = run_settings({**BASE, "execution": "ray", "staleness": staleness, "iterations": 5})
        with closing(on_ray(settings, tmp_path / f"from {iterations[0]}", head, prompts)) as loop:
            if iterations[0] > 1:
                loop.load(tmp_path / str(iterations[0] - 1))
            stale += [loop.iterate(i).updates[0].logprob_abs_diff > 1e-5 for i in iterations]
            loop.save(tmp_path / str(iterations[-1]))
    assert stale == [False, False, False, True, False]
