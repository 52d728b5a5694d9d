"""Recipes of large models, checked with the published sizes: parameters, the GPUs and GB that the recipes name, and the
files that don't come with them."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.on_ray.placement import demands
from branchgrpo.cluster.plan.gpus import GPUS
from branchgrpo.cluster.plan.reward_shapes import CLIP_L
from branchgrpo.proto.recipe import load_recipe
from published_models import MODELS, without_weights
from support import RECIPES
from transformers import CLIPConfig

BILLIONS = {
    "chroma_pickscore": 8.9,
    "flux2_dev_edit": 32.2,
    "flux2_dev_pickscore": 32.2,
    "flux2_klein_edit": 3.88,
    "flux2_klein_pickscore": 3.88,
    "flux_hps_branch": 11.9,
    "flux_hps_mix": 11.9,
    "flux_kontext": 11.9,
    "flux_lora_24gb": 11.9,
    "hunyuan_from_picture": 8.33,
    "hunyuan_video": 8.33,
    "ltx25_clap_pickscore": 19.0,
    "ltx2_clap_pickscore": 18.9,
    "ltx2_from_picture": 18.9,
    "qwen_image_21_edit": 7.12,
    "qwen_image_21_ocr": 7.12,
    "qwen_image_edit": 20.4,
    "qwen_image_ocr": 20.4,
    "sd15_aesthetic": 0.86,
    "sd35_pickscore": 2.24,
    "sdxl_pickscore": 2.57,
    "stable_audio_clap": 1.06,
    "wan21_video": 1.42,
    "wan22_14b_from_picture": 28.6,
    "wan22_from_picture": 5.0,
    "z_image_pickscore": 6.15,
}
"""Recipe -> parameters of its network, as published."""
NOT_SHIPPED = re.compile(
    r"rewards\.\w+\.pretrained is '(/.*/)?models/.*"
    r"|rewards\.\w+\.judge\.url is '.*', which doesn't answer: .*"
    r"|prompts\.train is '.*'; no such file"
    r"|.*\.safetensors, weights of a \w+: missing"
)
"""What is missing where there are no weights, no prompts, and no judge."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models' folders without weights, made once each."""
    return {name: without_weights(name, tmp_path_factory.mktemp("model") / name) for name in MODELS}


def test_every_recipe_of_a_large_model_is_here() -> None:
    small = {path.stem for path in RECIPES.glob("*.yaml") if path.stem.startswith(("glyphs", "shapes"))}
    assert BILLIONS.keys() == {path.stem for path in RECIPES.glob("*.yaml")} - small


@pytest.mark.parametrize("name", BILLIONS)
def test_a_recipe_fits_its_gpus_and_lacks_only_files(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CLIPConfig(**CLIP_L).save_pretrained(tmp_path / "models" / "clip-vit-large-patch14")
    monkeypatch.chdir(tmp_path)
    settings = load_recipe(RECIPES / f"{name}.yaml")
    folder = folders[Path(settings.policy.pretrained).name]
    settings = settings.model_copy(update={"policy": settings.policy.model_copy(update={"pretrained": str(folder)})})
    text = (RECIPES / f"{name}.yaml").read_text()
    gpus, gigabytes = map(int, re.search(r"(\d+) GPUs? of (\d+) GB", text).groups())  # type: ignore[union-attr]
    assert math.ceil(sum(need.count * need.each.get("GPU", 0) for need in demands(settings))) <= gpus
    found = check(settings, replace(GPUS["h100"], memory=gigabytes * 1e9))
    assert [line for line in found.missing if not NOT_SHIPPED.fullmatch(line)] == []
    adapters = found.parameters["trained"] if settings.learner.lora else 0
    assert found.parameters["all"] - adapters == pytest.approx(BILLIONS[name] * 1e9, rel=0.02)
    assert found.changes == {}
    whole = max((process.peak for process in found.memory.values() if process.gpus == 1), default=0)
    shared = sum(process.peak for process in found.memory.values() if 0 < process.gpus < 1)  # on one GPU
    assert f"hours and {math.ceil(max(whole, shared) / 1e9)} GB a GPU planned." in text
