"""Two learner ranks do together what one does, whatever method they learn with, whatever they start from, and with
networks of other kinds. Those of all families are in `tests/slow/long`."""

from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from families import as_lora, saved
from ranks import SETTINGS, assert_all_is_exported, assert_one_learns_the_same, of_family
from support import Settings

METHODS = {"dance_grpo": None, "branch_grpo": {"rank": 2}, "tree_grpo": None}
"""With their adapters. A method is only a schedule, and these differ most: many roots, splits below roots, a window."""
VARIANTS = [
    *METHODS,
    "stage3 offloaded",
    "stage3 partitioned kl",
    "stage3 partitioned start merged",
    "stage3 partitioned start trained",
    "stage3 partitioned streams adapted",
    "stage3 partitioned unet",
]


@pytest.fixture(scope="module")
def variants(
    small_methods: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    third = {"learner.zero_stage": 3}
    tiny = saved("FLUX.1-dev", tmp_path_factory.mktemp("family") / "pipeline")
    lora = str(as_lora(DiffusionPipeline.from_pretrained(tiny), tmp_path_factory.mktemp("lora")))
    partitioned = {**third, "name": "partitioned"}
    started = {**partitioned, "policy.pretrained": str(tiny)}
    unet, streams = (
        of_family(name, saved(name, tmp_path_factory.mktemp("family") / "pipeline"), stage=3)
        for name in ("SD1.5", "LTX-2")
    )
    changes: dict[str, dict[str, Any]] = {
        "stage3 offloaded": {**third, "learner.offload": {"optimizer": True, "parameters": True}},
        "stage3 partitioned kl": {**partitioned, "learner.kl_weight": 50.0},
        "stage3 partitioned start merged": {**started, "policy.start_from": lora},
        "stage3 partitioned start trained": {
            **started,
            "policy.start_from": {"path": lora, "lora": "train"},
            "learner.lora": {"rank": 2, "alpha": 6},
        },
        "stage3 partitioned unet": unet,
        "stage3 partitioned streams adapted": {**streams, "learner.lora": {"rank": 2}},
    }
    for method, adapter in METHODS.items():
        schedule = {"method": method, **small_methods[method]}
        changes[method] = {"schedule": schedule, "advantage.normaliser": "group", "learner.lora": adapter}
    return {name: SETTINGS | own for name, own in changes.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_match_one_and_their_checkpoint_loads_on_one(
    variant: str, variants: dict[str, dict[str, Any]], two_ranks: Path, settings_in: Settings
) -> None:
    assert_one_learns_the_same(settings_in(two_ranks, variants[variant]), two_ranks / variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_two_ranks_export_is_what_they_have_trained(variant: str, two_ranks: Path) -> None:
    assert_all_is_exported(two_ranks / variant)
