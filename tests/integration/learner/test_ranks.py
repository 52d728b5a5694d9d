"""Several learner ranks do together what one does, however unequal their trees, and their checkpoints load on one.

With small FLUX networks; `tests/slow` has other methods, adapters and families.
"""

from pathlib import Path
from typing import Any

import pytest
from ranks import SETTINGS, assert_all_is_exported, assert_one_learns_the_same, learn_on_two
from support import Settings

LORA = {"learner.lora": {"rank": 2}}
PARTITIONED = {"learner.zero_stage": 3, "name": "partitioned"}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    **{f"stage{stage}": {"learner.zero_stage": stage} for stage in range(4)},
    "stage3 partitioned": PARTITIONED,
    "stage3 partitioned lora": PARTITIONED | LORA,
}


@pytest.fixture(scope="module")
def two_ranks(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {name: SETTINGS | own for name, own in VARIANTS.items()}
    return learn_on_two(settings_in, changes, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_match_one_and_their_checkpoint_loads_on_one(
    variant: str, two_ranks: Path, settings_in: Settings
) -> None:
    assert_one_learns_the_same(settings_in(two_ranks, SETTINGS | VARIANTS[variant]), two_ranks / variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_two_ranks_export_is_what_they_have_trained(variant: str, two_ranks: Path) -> None:
    assert_all_is_exported(two_ranks / variant)
