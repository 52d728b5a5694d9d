"""`branchgrpo diversity`: what is compared with what, and what comes out."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.cluster.cli import app
from branchgrpo.cluster.commands.diversity import find_features, pooled_pixels, sequential
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.schedule import Schedule, tree_schedule
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import Task, Tree
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from support import Settings
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner

SCHEDULE = tree_schedule(5, kernel="dance", eta=0.7, splits={1: 2, 2: 3}, roots=2, sde_steps=())


def states(policy: Policy, schedule: Schedule, seed: int, start_seed: int | None) -> Callable[[int], torch.Tensor]:
    tree = Tree(0, "123", schedule)
    for part in RolloutWorker(policy, RolloutSettings()).sample(
        Task(0, (0,), ("123",), schedule, seed, start_seed=start_seed)
    ):
        tree.add(part)
    return tree.state


def test_samples_share_the_starts_of_the_tree_and_no_other_noise(tiny_policy: Policy) -> None:
    shared, own = sequential(SCHEDULE, shared=True), sequential(SCHEDULE, shared=False)
    assert (shared.roots, shared.splits, shared.leaves) == (2, {1: 6}, 12)
    assert (own.roots, own.splits, own.leaves) == (12, {}, 12)
    assert [step.kernel for step in shared.steps] == [step.kernel for step in SCHEDULE.steps]
    of_tree, of_samples = states(tiny_policy, SCHEDULE, 1, None), states(tiny_policy, shared, 2, 1)
    for node in range(4):  # two starts, and the states after the deterministic step
        assert torch.equal(of_tree(node), of_samples(node))
    assert not torch.equal(of_tree(4), of_samples(4))


def test_pixels_are_averaged_in_cells() -> None:
    media = np.zeros((2, 32, 48, 3), np.uint8)
    media[1, :2, :3] = 255  # one cell
    features = pooled_pixels(media)
    assert features.shape == (2, 16 * 16 * 3)
    assert features.sum(axis=1).tolist() == [0.0, 3.0]


def test_a_recipe_is_compared_and_the_results_are_written(run_settings: Settings, tmp_path: Path) -> None:
    recipe = save_recipe(run_settings(), tmp_path / "recipe")
    options: list[Any] = ["--prompts", 3, "--permutations", 20, "--out", tmp_path / "out"]
    told = CliRunner().invoke(app, ["diversity", str(recipe), *map(str, options)])
    assert told.exit_code == 0, told.output
    written = json.loads((tmp_path / "out" / "diversity.json").read_text())
    lines = list(csv.DictReader((tmp_path / "out" / "diversity.csv").read_text().splitlines()))
    assert [(one["policy"], one["starts"]) for one in written["comparisons"]] == [
        ("untrained", "the tree's"),
        ("untrained", "their own"),
    ]
    for one in written["comparisons"]:
        values = [float(line["mmd2"]) for line in lines if line["starts"] == one["starts"]]
        assert np.mean(values) == pytest.approx(one["mmd2"])
        assert len(values) == 3
    shared, own = written["comparisons"]
    assert shared["mmd2"] < own["mmd2"]  # one start for all leaves is what sets a tree apart most


def test_features_of_what_is_no_clip_model(run_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"features are to be those of '{tmp_path}', which isn't a CLIP model"):
        find_features(run_settings(), str(tmp_path))


@pytest.mark.parametrize("given", [False, True])
def test_features_need_no_tokenizer(run_settings: Settings, tmp_path: Path, given: bool) -> None:
    """A reward's may lie elsewhere, as PickScore's does."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config={**small, "vocab_size": 99}, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path)
    reward = {"pretrained": str(tmp_path), "tokenizer": "elsewhere"}
    settings = run_settings() if given else run_settings({"rewards": {"pick_score": reward}})
    name, describe = find_features(settings, str(tmp_path) if given else None)
    assert name == f"CLIP features ({tmp_path})"
    found = describe(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3))
    assert found.shape == (3, 8)


def test_a_schedule_without_splits_has_no_trees(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"schedule": {"method": "dance_grpo", "steps": 5}, "advantage.normaliser": "group"})
    recipe = save_recipe(settings, tmp_path / "recipe")
    told = CliRunner().invoke(app, ["diversity", str(recipe)])
    assert isinstance(told.exception, InputError)
    assert "the schedule doesn't split" in str(told.exception)
