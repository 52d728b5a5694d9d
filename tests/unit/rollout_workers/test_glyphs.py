"""The embedded policy: its size and format, its words, and how it was made."""

import numpy as np
import pytest
import torch
from branchgrpo.reward_service.ocr import OcrScorer
from branchgrpo.rollout_workers.glyphs.words import draw_all, words
from branchgrpo.rollout_workers.policies.load import EMBEDDED
from diffusers import FluxPipeline
from safetensors import safe_open
from support import RECIPES


def test_it_is_a_small_half_precision_flux_pipeline() -> None:
    folder = EMBEDDED["glyphs"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 6_000_000
    weights = list(folder.rglob("*.safetensors"))
    assert len(weights) == 4
    assert not list(folder.rglob("*.bin"))
    for path in weights:
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    assert 500_000 <= sum(p.numel() for p in pipeline.transformer.parameters()) <= 2_000_000
    assert pipeline.vae_scale_factor == 4


def test_words_are_divided_once_and_for_all() -> None:
    train, held_out = words()
    assert (len(train), len(held_out)) == (850, 150)
    assert not set(train) & set(held_out)
    assert (RECIPES / "glyphs_train.txt").read_text().split() == train
    assert (RECIPES / "glyphs_held_out.txt").read_text().split() == held_out


def test_clean_words_can_be_read_and_scribbled_ones_can_not() -> None:
    _, chosen = words()
    scorer = OcrScorer()
    clean = scorer(draw_all(chosen, 0, scribbled=0.0), chosen)["ocr_exact"].mean()
    scribbled = scorer(draw_all(chosen, 0, scribbled=1.0), chosen)["ocr_exact"].mean()
    assert clean >= 0.98
    assert scribbled <= 0.05


def test_scribbling_is_as_likely_as_asked() -> None:
    chosen = ["123"] * 2000
    darkness = draw_all(chosen, 0, scribbled=0.55).reshape(2000, -1).mean(axis=1)
    low, high = (draw_all(chosen, 1, scribbled=p).reshape(2000, -1).mean(axis=1) for p in (1.0, 0.0))
    share = (high.mean() - darkness.mean()) / (high.mean() - low.mean())
    assert share == pytest.approx(0.55, abs=0.1)
    assert np.isfinite(share)
