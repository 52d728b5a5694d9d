"""Each class of network trains, and its export is drawn by plain diffusers.

`tests/slow` has families whose networks are alike, and bfloat16 without a LoRA.
"""

from pathlib import Path

import pytest
from family_training import ADAPTERS, DIFFERENT, assert_an_update_is_exported, assert_ratio_one_in_bfloat16
from support import Settings


@pytest.mark.parametrize("family", DIFFERENT)
def test_bfloat16_with_recomputed_activations_has_ratio_one(
    family: str, run_settings: Settings, tmp_path: Path
) -> None:
    assert_ratio_one_in_bfloat16(family, "lora", run_settings, tmp_path)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", DIFFERENT)
def test_an_update_trains_the_network_and_its_export_draws_it(
    family: str, adapter: str, run_settings: Settings, tmp_path: Path
) -> None:
    assert_an_update_is_exported(family, adapter, run_settings, tmp_path)
