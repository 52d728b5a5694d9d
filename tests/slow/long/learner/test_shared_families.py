"""Two learner ranks that share a family's network do together what one does: with adapters, and from pictures."""

from pathlib import Path
from typing import Any

import pytest
from families import saved
from ranks import assert_one_exports_the_same, assert_one_learns_the_same, of_family
from support import Settings

ADAPTED = ("FLUX.2 dev", "HunyuanVideo 1.5", "Qwen-Image", "SDXL", "Stable Audio")
WHOLE = ("HunyuanVideo 1.5, picture", "LTX-2.3, picture", "Qwen-Image", "Wan 2.2 5B")
"""Beside those of `test_family_ranks`, of which each has another class of network, or is told more."""
VARIANTS = {
    f"{family} {'adapted' if lora else 'whole'}": (family, lora)
    for families, lora in ((ADAPTED, {"rank": 2}), (WHOLE, None))
    for family in families
}


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folders = {family: saved(family, tmp_path_factory.mktemp("family") / "pipeline") for family in {*ADAPTED, *WHOLE}}
    return {
        variant: {**of_family(family, folders[family], stage=3), "learner.lora": lora}
        for variant, (family, lora) in VARIANTS.items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_match_one_and_their_checkpoint_loads_on_one(
    variant: str, variants: dict[str, dict[str, Any]], two_ranks: Path, settings_in: Settings
) -> None:
    assert_one_learns_the_same(settings_in(two_ranks, variants[variant]), two_ranks / variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_export_what_one_does(
    variant: str, variants: dict[str, dict[str, Any]], two_ranks: Path, settings_in: Settings, tmp_path: Path
) -> None:
    """A LoRA, or where diffusers has none the network that it is merged into."""
    assert_one_exports_the_same(settings_in(tmp_path, variants[variant]), two_ranks / variant, tmp_path)
