"""Merged pipelines of families whose class of network another family has in `tests/unit`."""

from pathlib import Path

import pytest
from family_training import ALIKE
from merged_pipelines import assert_draws_what_evaluate_drew
from support import Settings


@pytest.mark.parametrize("family", ALIKE)
def test_a_merged_pipeline_draws_what_evaluate_drew(family: str, run_settings: Settings, tmp_path: Path) -> None:
    assert_draws_what_evaluate_drew(family, {"rank": 2}, {}, run_settings, tmp_path)
