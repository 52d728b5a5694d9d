"""The embedded policy `shapes`: its size and format, its scenes, and how it was made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from branchgrpo.rollout_workers.policies.load import EMBEDDED
from branchgrpo.rollout_workers.shapes.scenes import Scene, misread, scenes
from diffusers import FluxPipeline
from safetensors import safe_open

RECIPES = Path(__file__).parents[3] / "recipes"
PARTS = ("train", "validation", "held_out")


def test_it_is_a_small_half_precision_flux_pipeline() -> None:
    folder = EMBEDDED["shapes"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 6_000_000
    weights = list(folder.rglob("*.safetensors"))
    assert len(weights) == 4
    for path in weights:
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.vae_scale_factor == 4
    prompt = "red circle left of blue square"
    assert pipeline.tokenizer.tokenize(prompt) == [f"{word}</w>" for word in prompt.split()]
    assert pipeline.tokenizer_2.tokenize(prompt) == [f"▁{word}" for word in prompt.split()]


def test_scenes_are_divided_once_and_for_all() -> None:
    parts = scenes()
    assert [len(part) for part in parts] == [1600, 120, 200]
    assert len({scene for part in parts for scene in part}) == 6 * 4 * 4 * 5 * 4
    for name, part in zip(PARTS, parts, strict=True):
        assert (RECIPES / f"shapes_{name}.txt").read_text().splitlines() == [str(scene) for scene in part]


def test_each_word_is_misread_as_often_as_asked() -> None:
    scene, rng = Scene("red", "circle", "above", "blue", "cross"), np.random.default_rng(0)
    wrong = np.array(
        [
            [getattr(scene, field) != getattr(other, field) for field in vars(scene)]
            for other in (misread(scene, 0.2, rng) for _ in range(4000))
        ]
    )
    assert wrong.mean(axis=0) == pytest.approx(0.2, abs=0.02)
    assert np.corrcoef(wrong.T) == pytest.approx(np.eye(5), abs=0.06)
