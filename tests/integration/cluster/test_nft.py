"""Whole runs that learn from leaves alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.train import train
from branchgrpo.proto.settings import RunSettings
from support import assert_bit_equal, weights


@pytest.mark.parametrize(
    ("objective", "lora", "decay"),
    [("nft", None, 0.0), ("nft", None, 0.5), ("nft", {"rank": 2}, 0.5), ("awm", None, 0.5)],
    ids=["full, no average", "full", "lora", "awm"],
)
def test_a_run_continues_and_exports_what_it_evaluates(
    settings_in: Callable[..., RunSettings], tmp_path: Path, objective: str, lora: dict[str, int] | None, decay: float
) -> None:
    changes = {
        "schedule": {"method": "nft", "steps": 4, "group": 4},
        "advantage.normaliser": "group",
        "learner.objective": objective,
        "learner.nft": {"old_decay": decay},
        "learner.lora": lora,
        "iterations": 2,
        "evaluation.prompts": 1,
        "rewards": {"jpeg_compressibility": {}},
        "logging": {"trace": False, "tensorboard": False, "samples_every": 0, "trees_every": 0},
    }
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    train(settings_in(tmp_path / "whole", changes), RunDisplay())
    train(settings_in(tmp_path / "parts", {**changes, "iterations": 1}), RunDisplay())
    train(settings_in(tmp_path / "parts", changes), RunDisplay(), resume=True)
    whole, parts = (weights(tmp_path / name / "runs" / "run") for name in ("whole", "parts"))
    assert_bit_equal(whole, parts)
    run = tmp_path / "whole" / "runs" / "run"
    if lora is None:
        exported = safetensors.torch.load_file(next((run / "export").rglob("*.safetensors")))
        assert_bit_equal(exported, whole)
