"""Two learner ranks do together what one does, at every ZeRO stage, with networks of every kind of family."""

from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from families import as_lora, saved
from ranks import assert_all_is_exported, assert_one_exports_the_same, assert_one_learns_the_same, of_family
from support import Settings

NAMES = (
    "Chroma",
    "FLUX.1 Kontext",
    "FLUX.2 dev",
    "FLUX.2 klein, pictures",
    "HunyuanVideo 1.5",
    "LTX-2",
    "LTX-2.5",
    "Qwen-Image 2.1, pictures",
    "Qwen-Image-Edit Plus",
    "SD1.5",
    "SD3.5",
    "SDXL",
    "Stable Audio",
    "Wan 2.1, picture",
    "Wan 2.2 14B",
    "Wan 2.2 14B, picture",
    "Z-Image",
)
"""Beside FLUX.1-dev: tables that are no buffers, a UNet, a buffer with weights, tables of angles and two networks."""
MERGED = "start merged Wan 2.2 14B"


@pytest.fixture(scope="module", params=range(4))
def stage(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp("family") / "pipeline") for name in NAMES}


@pytest.fixture(scope="module")
def variants(stage: int, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is trained: each family, and two networks at once over a LoRA that is merged."""
    changes = {family: of_family(family, folders[family], stage) for family in NAMES}
    video = changes["Wan 2.2 14B"]
    lora = as_lora(DiffusionPipeline.from_pretrained(video["policy.pretrained"]), tmp_path_factory.mktemp("lora"))
    return changes | {MERGED: {**video, "policy.start_from": str(lora), "learner.lora": {"rank": 2}}}


@pytest.mark.parametrize("variant", [*NAMES, MERGED])
def test_two_ranks_match_one_and_their_checkpoint_loads_on_one(
    variant: str, variants: dict[str, dict[str, Any]], two_ranks: Path, settings_in: Settings
) -> None:
    assert_one_learns_the_same(settings_in(two_ranks, variants[variant]), two_ranks / variant)


@pytest.mark.parametrize("variant", NAMES)
def test_what_two_ranks_export_is_what_they_have_trained(variant: str, two_ranks: Path) -> None:
    assert_all_is_exported(two_ranks / variant)


def test_what_two_ranks_export_over_a_merged_lora_is_whole(
    variants: dict[str, dict[str, Any]], two_ranks: Path, settings_in: Settings, tmp_path: Path
) -> None:
    assert_one_exports_the_same(settings_in(tmp_path, variants[MERGED]), two_ranks / MERGED, tmp_path)
