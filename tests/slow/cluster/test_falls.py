"""A run whose held-out reward falls goes back to its best weights, and learns more slowly from there."""

from pathlib import Path

import pytest
import torch
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.status import status_of
from support import ROOT, Settings, run_train, weights

STEEP = {
    "threads": 1,
    "policy.pretrained": "glyphs",
    "policy.height": 32,
    "policy.width": 64,
    "prompts.per_iteration": 2,
    "prompts.held_out": str(ROOT / "recipes" / "glyphs_held_out.txt"),
    "rewards": {
        "jpeg_compressibility": {"weight": 1.0},
        "ocr": {"weight": 0.0},
    },  # the first differs between any leaves
    "schedule": {"steps": 6, "splits": {0: 2}, "eta": 0.7},
    "learner.updates_per_iteration": 1,
    # The first update of a warm-up changes nothing, and the second far too much.
    "learner.optimizer": {"learning_rate": 0.1, "warmup_updates": 2},
    "evaluation": {"prompts": 40, "every": 1, "undo_falls": {"pace": 1e-5}},
    "checkpoint": {"every": 1, "keep": 9, "keep_best": {"reward": "ocr"}},
    "iterations": 4,
}


@pytest.fixture(scope="module")
def plain(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return run_train(settings_in(folder, STEEP), folder)


def test_a_fall_is_undone(plain: Path) -> None:
    run = RunFolder(plain)
    rewards = {line["iteration"]: line["ocr"] for line in run.lines("evaluations")}
    assert rewards[2] < 0.5 * rewards[1]
    assert rewards[4] > 0.8 * rewards[1]
    best, back, last = (weights(plain, iteration) for iteration in (1, 2, 4))
    assert all(torch.equal(best[name], back[name]) for name in best)
    assert any(not torch.equal(best[name], last[name]) for name in best)
    rates = [line["learning_rate"] for line in run.lines("metrics")]
    assert rates == pytest.approx([0.0, 0.05, 0.1 * 1e-5, 0.1 * 1e-5]), "the course goes on where the run is"
    (told,) = run.lines("changes")
    assert (told["iteration"], told["best"], told["pace"]) == (3, 1, 1e-5)
    assert (told["fell_from"], told["to"]) == (rewards[1], rewards[2])
    assert f"the held-out reward fell from {rewards[1]:.3f} (iteration 1) to" in (plain / "log.txt").read_text()


def test_a_resumed_run_keeps_its_pace(plain: Path, run_settings: Settings, tmp_path: Path) -> None:
    run_train(run_settings({**STEEP, "iterations": 3}), tmp_path)
    run = run_train(run_settings(STEEP), tmp_path, "--resume")
    ours, expected = weights(run), weights(plain)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_falls_are_undone_alike_on_ray(plain: Path, run_settings: Settings, tmp_path: Path, head: str) -> None:
    ray = {"execution": "ray", "placement": "separate", "pools.learner.count": 1, "logging.metrics_host": "127.0.0.1"}
    run = run_train(run_settings({**STEEP, **ray}), tmp_path, "--address", head)
    assert status_of(run).recoveries == 0  # nothing was lost
    ours, expected = weights(run), weights(plain)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
