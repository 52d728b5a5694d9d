"""What a run on Ray holds in memory, how early it scores, and how it ends without scores."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import ray
from branchgrpo.cluster.run.iteration_trace import read
from branchgrpo.proto.errors import RunFailed
from ray import serve
from ray_runs import BASE, on_ray, stand_in
from support import Settings, until

LEAVES_256 = {"schedule": {"steps": 16, "splits": dict.fromkeys(range(8), 2), "eta": 0.7}, "rollout.max_batch_rows": 64}


def test_the_first_leaf_is_scored_before_half_of_the_passes(run_settings: Settings, head: str) -> None:
    changes = {**LEAVES_256, "prompts.per_iteration": 1, "learner.updates_per_iteration": 1}
    settings = run_settings(stand_in({**changes, "rollout.trees_per_task": 1}, "SleepingPolicy"))
    schedule = settings.schedule.build()
    assert schedule.leaves == 256
    folder = settings.runs / settings.name
    with closing(on_ray(settings, folder, head)) as loop:
        report = loop.iterate(1)
    assert 0.2 < (read(folder, 1).first_score or 0) < 0.5  # not before the first chunk is done, either
    assert 0 < report.scoring_hidden <= 1
    assert report.updates[0].skipped_edges == schedule.trained_edges


def test_memory_does_not_grow_with_the_trees(
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
            pid = loop.status()["pid"]
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
