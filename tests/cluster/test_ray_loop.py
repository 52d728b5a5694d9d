"""The loop on Ray gives what the plain loop gives, bit by bit, whatever happens to its workers."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import safetensors.torch
import torch
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.prompt_order import prompts_of
from branchgrpo.proto.errors import InputError, RunFailed
from branchgrpo.proto.prompts import read_prompts
from branchgrpo.proto.settings import RunSettings
from ray import serve
from support import SMALL, Settings, assert_bit_equal, command, recipe_in, until, weights

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
    with closing(loop):
        for i in range(1, ITERATIONS + 1):
            during(i)
            report = loop.iterate(i)
            assert report.forward_passes == 24 * settings.schedule.build().forward_passes
        loop.save(folder)
    return safetensors.torch.load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def plain(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a plain run, in a process of its own: ZeRO 3, which other tests use, changes torch for good."""
    folder = tmp_path_factory.mktemp("plain")
    settings = settings_in(folder, {**BASE, "iterations": ITERATIONS})
    done = subprocess.run(command("train", recipe_in(folder, settings)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return weights(settings.runs / settings.name, ITERATIONS)


def on_ray(settings: RunSettings, folder: Path, head: str, prompts: list[str] | None = None) -> RayLoop:
    """A run over some prompts, or those of the recipe."""
    folder.mkdir(parents=True)
    return RayLoop(settings, folder, prompts or read_prompts(settings.prompts.train, "prompts.train"), head)


@pytest.mark.parametrize(
    "changes",
    [
        {"pools.rollout_workers": SMALL, "name": "é #1 [red]=%d 😀"},
        {"placement": "colocated"},
        pytest.param(
            {
                "pools.rollout_workers": {**SMALL, "count": 3},
                "rollout.max_trees_in_flight": 8,
                "rollout.max_parts_in_scoring": 2,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one worker and a name of all letters", "colocated", "three workers and little room"],
)
def test_weights_are_bit_equal_to_the_plain_loop_s(
    changes: dict[str, Any], plain: dict[str, torch.Tensor], run_settings: Settings, tmp_path: Path, head: str
) -> None:
    settings = run_settings({**BASE, "execution": "ray", **changes})
    loop = on_ray(settings, tmp_path / "run", head)
    assert loop.cut_prompts(["123", "1234567890"]) == ["1234567890"]
    assert_bit_equal(trained(loop, settings, tmp_path / "checkpoint"), plain)


@pytest.mark.slow
def test_other_numbers_of_learner_ranks_go_on_from_a_checkpoint(
    plain: dict[str, torch.Tensor], run_settings: Settings, tmp_path: Path, head: str
) -> None:
    """One, then three, then two, which share everything, train as one does within rounding."""
    saved = tmp_path / "run [1]+lr=3"
    for iteration, ranks in enumerate((1, 3, 2), 1):
        pool = {**SMALL, "count": ranks}
        settings = run_settings({**BASE, "execution": "ray", "learner.zero_stage": 3, "pools.learner": pool})
        with closing(on_ray(settings, tmp_path / f"{ranks} ranks", head)) as loop:
            if iteration > 1:
                loop.load(saved / str(iteration - 1))
            loop.iterate(iteration)
            loop.save(saved / str(iteration))
    found = safetensors.torch.load_file(saved / str(ITERATIONS) / "weights.safetensors")
    assert found.keys() == plain.keys()
    differences = torch.cat([(found[name] - plain[name]).abs().flatten() for name in plain])
    # AdamW divides a gradient by its own size: where that is near 0, its last bits decide.
    rate = settings.learner.optimizer.learning_rate
    assert (differences > 0.03 * rate).float().mean() < 0.01


def test_a_process_that_was_given_no_gpu_sees_none(head: str) -> None:
    """Else all of them would take the node's first."""

    @ray.remote(num_cpus=0)
    def visible() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    with connected(head):
        assert ray.get(visible.remote()) == ""


@pytest.mark.slow
def test_weights_are_bit_equal_though_a_worker_is_killed_and_pools_are_scaled(
    plain: dict[str, torch.Tensor], run_settings: Settings, tmp_path: Path, head: str
) -> None:
    settings = run_settings({**BASE, "execution": "ray", "pools.rollout_workers": {**SMALL, "count": 2}})
    loop = on_ray(settings, tmp_path / "run", head)
    seen: list[list[int]] = []

    def workers() -> list[dict[str, Any]]:
        return ray.get(loop._controller.status.remote())["pools"]["rollout_workers"]

    def disturb(iteration: int) -> None:
        seen.append([worker["pid"] for worker in workers()])
        if iteration == 2:
            threading.Thread(target=kill_a_busy_one).start()
        if iteration == 3:
            ray.get(loop._controller.scale.remote(1, {"ocr": 2}))

    def kill_a_busy_one() -> None:
        while not (busy := [worker["pid"] for worker in workers() if worker["state"] == "busy"]):
            time.sleep(0.01)
        os.kill(busy[0], signal.SIGKILL)

    assert_bit_equal(trained(loop, settings, tmp_path / "checkpoint", disturb), plain)
    assert len(seen[0]) == len(seen[1]) == len(seen[2]) == 2
    assert set(seen[0]) - {""} <= set(seen[1])  # one may still be starting
    assert len(set(seen[1]) & set(seen[2])) == 1, "one of two was killed and replaced"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"schedule.adapt": {}},
        {"schedule": {"method": "tree_grpo", "steps": 6, "window": 2}},
        {"learner.keep_graph": True, "learner.updates_per_iteration": 1, "placement": "colocated"},
    ],
    ids=["moving splits", "a window drawn anew", "kept graphs"],
)
def test_what_changes_with_iterations_is_the_same_on_ray(
    changes: dict[str, Any], settings_in: Settings, tmp_path: Path, head: str
) -> None:
    saved = []
    for execution in ("in_process", "ray"):
        settings = settings_in(
            tmp_path, {**BASE, **changes, "name": execution, "execution": execution, "iterations": 3}
        )
        train = command("train", recipe_in(tmp_path, settings), "--address", head)
        subprocess.run(train, check=True, capture_output=True)
        run = settings.runs / execution
        lines = RunFolder(run).lines("metrics")
        figures = [(line["forward_passes"], line["rewards"], line["logprob_abs_diff"]) for line in lines]
        saved.append((weights(run, 3), figures))
    assert_bit_equal(saved[0][0], saved[1][0])
    assert saved[0][1] == saved[1][1]


@pytest.mark.slow
def test_scaling_down_drains_and_scaling_up_adds(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """Workers that leave finish their task: no task runs twice, though it would change nothing but the time."""
    settings = run_settings(stand_in({"pools.rollout_workers": {**SMALL, "count": 2}}, "SleepingPolicy"))
    with closing(on_ray(settings, tmp_path / "run", head)) as loop:

        def status() -> dict[str, Any]:
            return ray.get(loop._controller.status.remote())["pools"]

        answer = loop._controller.iterate.remote(1)
        while sum(worker["state"] == "busy" for worker in status()["rollout_workers"]) < 2:
            time.sleep(0.01)
        before = status()["rollout_workers"]
        ray.get(loop._controller.scale.remote(1, {}))
        assert [worker["state"] for worker in status()["rollout_workers"]] == ["busy", "draining"]
        while len(status()["rollout_workers"]) > 1:
            time.sleep(0.01)
        ray.get(loop._controller.scale.remote(3, {"constant": 2}))
        pids = [worker["pid"] for worker in status()["rollout_workers"]]
        assert len(pids) == 3
        assert before[0]["pid"] in pids
        assert before[1]["pid"] not in pids
        assert ray.get(answer)[0].forward_passes == 24 * settings.schedule.build().forward_passes
        while status()["rewards"]["constant"].get("RUNNING") != 2:
            time.sleep(0.1)
        with pytest.raises(InputError, match="--reward names 'beauty'; this run has constant"):
            loop._call(loop._controller.scale.remote(None, {"beauty": 2}))


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


LEAVES_256 = {"schedule": {"steps": 16, "splits": dict.fromkeys(range(8), 2), "eta": 0.7}, "rollout.max_batch_rows": 64}


@pytest.mark.slow
@pytest.mark.long
def test_the_first_leaf_is_scored_before_half_of_the_forward_passes_are_done(
    run_settings: Settings, tmp_path: Path, head: str
) -> None:
    changes = {**LEAVES_256, "prompts.per_iteration": 1, "learner.updates_per_iteration": 1}
    settings = run_settings(stand_in({**changes, "rollout.trees_per_task": 1}, "SleepingPolicy"))
    schedule = settings.schedule.build()
    assert schedule.leaves == 256
    with closing(on_ray(settings, tmp_path / "run", head)) as loop:
        report = loop.iterate(1)
    assert report.forward_passes == schedule.forward_passes
    assert 0.2 < report.first_score < 0.5  # not before the first chunk is done, either
    assert 0 < report.scoring_hidden <= 1
    assert report.updates[0].skipped_edges == schedule.trained_edges


@pytest.mark.slow
@pytest.mark.long
def test_neither_the_controller_nor_the_object_store_grows_with_the_trees(
    run_settings: Settings, tmp_path: Path, head: str, store_bytes: Callable[[], int]
) -> None:
    """Sixteen trees go through; what is there at once is a fifth of them."""
    resident, peaks, tree_bytes = {}, {}, {}
    for leaves, changes in ((16, {"schedule": {"steps": 16, "splits": {0: 2, 1: 2, 2: 2, 3: 2}}}), (256, LEAVES_256)):
        settings = run_settings(
            stand_in(
                {
                    **changes,
                    "policy.height": 128,
                    "policy.width": 128,
                    "rollout.max_batch_rows": 64,
                    "rollout.trees_per_task": 1,
                    "rollout.max_parts_in_scoring": 2,
                    "rollout.max_trees_in_flight": 2,
                    "learner.window_trees": 1,
                    "prompts.per_iteration": 8,
                },
                scorer="sleeping_scorer",
            )
        )
        schedule = settings.schedule.build()
        assert schedule.leaves == leaves
        with closing(on_ray(settings, tmp_path / f"run{leaves}", head)) as loop:
            pid = ray.get(loop._controller.status.remote())["pid"]
            latents = 32 * 32 * 16 * 4
            tree_bytes[leaves] = schedule.nodes * latents + leaves * 128 * 128 * 3
            before, peak, done = store_bytes(), 0, threading.Event()

            def watch(before: int = before, done: threading.Event = done) -> None:
                nonlocal peak
                while not done.is_set():
                    peak = max(peak, store_bytes() - before)
                    time.sleep(0.02)

            watcher = threading.Thread(target=watch)
            watcher.start()
            for iteration in (1, 2):
                loop.iterate(iteration)
            done.set()
            watcher.join()
            peaks[leaves], resident[leaves] = peak, psutil.Process(pid).memory_info().rss
    assert resident[256] - resident[16] < 0.2 * tree_bytes[256] < 50e6
    # Two trees in flight, two parts unread, one being made: of sixteen trees that went through.
    assert peaks[256] < 3.5 * tree_bytes[256], (peaks, tree_bytes)
    ray.init(head, namespace="branchgrpo")
    try:
        until(lambda: store_bytes() == 0, 30, lambda: "a run has left something behind")
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_reward_model_that_dies_or_raises_is_asked_again(
    plain: dict[str, torch.Tensor], run_settings: Settings, tmp_path: Path, head: str, faults: Path
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


@pytest.mark.slow
@pytest.mark.long
def test_a_reward_model_that_never_scores_stops_the_run(run_settings: Settings, tmp_path: Path, head: str) -> None:
    rewards = {"ocr": {"scorer": "faulty_scorers:never_works"}}
    settings = run_settings({**BASE, "execution": "ray", "rewards": rewards})
    with closing(on_ray(settings, tmp_path / "run", head)) as loop:
        with pytest.raises(RunFailed, match=r"'ocr' gave no score for request 'run/1/\d+/.*scores must be finite"):
            loop.iterate(1)
        application = loop.settings.name
    ray.init(head, namespace="branchgrpo")
    try:
        assert not [name for name in serve.status().applications if application in name]
        assert not ray.util.list_named_actors()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_trees_without_scores_are_left_out_until_they_are_too_many(
    run_settings: Settings, tmp_path: Path, head: str
) -> None:
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


@pytest.mark.slow
def test_a_run_that_samples_ahead_goes_on_bit_by_bit(run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = run_settings({**BASE, "execution": "ray", "staleness": 1, "iterations": 3})
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


@pytest.mark.slow
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
