"""Merged pipelines of the families that `tests/unit` doesn't merge."""

from pathlib import Path

import pytest
from families import FAMILIES
from merged_pipelines import IN_UNIT_TESTS, NOISY, assert_draws_what_evaluate_drew
from support import Settings


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in (*IN_UNIT_TESTS, NOISY)])
def test_a_merged_pipeline_draws_what_evaluate_drew(family: str, run_settings: Settings, tmp_path: Path) -> None:
    assert_draws_what_evaluate_drew(family, {"rank": 2}, {}, run_settings, tmp_path)
