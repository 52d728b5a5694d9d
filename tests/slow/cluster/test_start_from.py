"""Runs of a model with two networks that start from what another run has trained."""

from pathlib import Path
from typing import Any

import pytest
from families import saved
from start_from import LORA, begin_where_another_ended, train_lora_further
from support import Settings


@pytest.fixture
def video(tmp_path: Path) -> dict[str, Any]:
    """Settings of a policy with two networks."""
    folder = saved("Wan 2.2 14B", tmp_path / "pipeline")
    return {"policy.pretrained": str(folder), "policy.frames": 5, "policy.width": 16}


@pytest.mark.parametrize(
    ("first", "second"), [(None, LORA), (LORA, None)], ids=["two networks, then LoRA", "two LoRAs, then full"]
)
def test_a_run_begins_where_another_has_ended(
    first: Any, second: Any, video: dict[str, Any], run_settings: Settings
) -> None:
    begin_where_another_ended(first, second, run_settings, **video)


def test_a_lora_of_a_run_is_trained_further(video: dict[str, Any], run_settings: Settings) -> None:
    train_lora_further(run_settings, **video)
