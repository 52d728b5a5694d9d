"""What a changed setting does when a run goes on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.train import train
from branchgrpo.rollout_workers.policies.base import trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from rich.console import Console
from support import Settings, weights

Weights = dict[str, torch.Tensor]
RATE = 1e-3
BEGUN = {
    "policy.pretrained": "glyphs",
    "policy.height": 32,
    "policy.width": 64,
    "threads": 1,
    "prompts.per_iteration": 2,
    "prompts.held_out": None,
    "schedule": {"steps": 4, "splits": {0: 2, 1: 2}},
    "rewards": {"jpeg_compressibility": {}},
    "learner.zero_stage": 1,
    "learner.updates_per_iteration": 1,
    "learner.optimizer": {"learning_rate": RATE, "gradient_clipping": 0.0, "weight_decay": 0.0},
    "logging": {"trace": False, "tensorboard": False, "samples_every": 0, "trees_every": 0},
}


@pytest.fixture(scope="module")
def begun(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run after one iteration."""
    settings = settings_in(tmp_path_factory.mktemp("begun"), {**BEGUN, "iterations": 1})
    return train(settings, RunDisplay(Console(quiet=True)))


@pytest.fixture(scope="module")
def unchanged(begun: Path, settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run after a second one, with the same settings."""
    return go_on(begun, tmp_path_factory.mktemp("unchanged"), settings_in, {})


def go_on(begun: Path, folder: Path, settings_in: Settings, changes: dict[str, Any]) -> RunFolder:
    """A copy of a run that has gone on with changes for another iteration."""
    folder.mkdir(exist_ok=True)
    settings = settings_in(folder, {**BEGUN, **changes, "iterations": 2})
    shutil.copytree(begun, settings.runs / settings.name)
    return RunFolder(train(settings, RunDisplay(Console(quiet=True)), resume=True))


def steps(run: RunFolder) -> torch.Tensor:
    """By how much each weight was moved in the second iteration, in learning rates."""
    before, after = weights(run.path, 1), weights(run.path, 2)
    return torch.cat([(after[name] - before[name]).abs().flatten() for name in before]) / RATE


@pytest.mark.parametrize(
    "changes",
    [
        {"learner.rows_per_micro_batch": 2},
        {"learner.window_trees": 1},
        {"learner.gradient_checkpointing": True},
        {"learner.zero_stage": 2},
        {"rollout.max_batch_rows": 3, "rollout.trees_per_task": 1},
    ],
    ids=["micro-batches", "windows", "checkpointing", "ZeRO 1 to 2", "batches of a rollout"],
)
def test_how_it_is_computed_does_not_change_the_result(
    changes: dict[str, Any], begun: Path, unchanged: RunFolder, settings_in: Settings, tmp_path: Path
) -> None:
    run = go_on(begun, tmp_path, settings_in, changes)
    assert {line["setting"] for line in run.lines("changes")} == {*changes, "iterations"}
    expected, found = weights(unchanged.path, 2), weights(run.path, 2)
    # Adam divides by the gradient's own size: where that is near 0, its last bits decide.
    differences = torch.cat([(found[name] - expected[name]).abs().flatten() for name in expected]) / RATE
    assert (differences > 0.01).float().mean() < 0.01
    assert steps(run).median() > 0.1


def test_zero_stage_2_becomes_1(begun: Path, settings_in: Settings, tmp_path: Path) -> None:
    second = go_on(begun, tmp_path, settings_in, {"learner.zero_stage": 2})
    settings = settings_in(tmp_path, {**BEGUN, "iterations": 3})
    back = RunFolder(train(settings, RunDisplay(Console(quiet=True)), resume=True))
    changed = [(line["iteration"], line["setting"], line["now"]) for line in back.lines("changes")]
    assert [line for line in changed if "zero" in line[1]] == [
        (2, "learner.zero_stage", 2),
        (3, "learner.zero_stage", 1),
    ]
    assert second.path == back.path
    assert back.checkpoints()[-1] == 3


def test_adam_without_memory_moves_weights_by_the_rate(begun: Path, settings_in: Settings, tmp_path: Path) -> None:
    """And moves none where gradients are clipped to far less than its epsilon of 1e-8."""
    optimizer = {**BEGUN["learner.optimizer"], "betas": [0.0, 0.0]}
    moved = steps(go_on(begun, tmp_path / "a", settings_in, {"learner.optimizer": optimizer}))
    assert moved.median() == pytest.approx(1, abs=0.05)
    clipped = {"learner.optimizer": {**optimizer, "gradient_clipping": 1e-14}}
    assert steps(go_on(begun, tmp_path / "b", settings_in, clipped)).max() < 0.01


def test_a_new_clip_range_clips(begun: Path, settings_in: Settings, tmp_path: Path) -> None:
    """In the second update of an iteration, whose ratios are not 1 any more."""
    for number, (clip_range, clips) in enumerate(((1e-12, True), (0.9, False))):
        changes = {"learner.clip_range": clip_range, "learner.updates_per_iteration": 2}
        line = go_on(begun, tmp_path / str(number), settings_in, changes).lines("metrics")[-1]
        assert line["ratio_max"] > line["ratio_min"]
        assert (line["clip_fraction"] > 0) == clips


def test_an_added_divergence_is_from_the_policy_before_training(
    begun: Path, settings_in: Settings, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path, {**BEGUN, "learner.kl_weight": 0.1})
    loop = InProcessLoop(settings, ["1"])
    loop.load(RunFolder(begun).checkpoint(1))
    untrained = trainable(load_policy(settings.policy).network)
    assert loop.learner.reference
    reference = dict(loop.learner.reference.network.named_parameters())  # type: ignore[union-attr]
    assert all(torch.equal(reference[name], value) for name, value in untrained.items())
    assert any(not torch.equal(value, reference[name]) for name, value in loop.policy.network.named_parameters())
    run = go_on(begun, tmp_path / "run", settings_in, {"learner.kl_weight": 0.1})
    line = run.lines("metrics")[-1]
    assert line["kl"] > 0  # in its only update: from the policy that it begins with it would be 0
    assert line["reference_rows"] == line["rows"]


def test_another_method_samples_its_own_trees(begun: Path, settings_in: Settings, tmp_path: Path) -> None:
    other = {"method": "flow_grpo", "steps": 3, "group": 3}
    changes = {"schedule": other, "advantage.normaliser": "group"}
    before, after = go_on(begun, tmp_path, settings_in, changes).lines("metrics")
    assert (before["leaves"], after["leaves"]) == (2 * 4, 2 * 3)
    assert after["forward_passes"] == 2 * 3 * 3
    assert after["logprob_abs_diff"] < 1e-5
