"""Two learner ranks do together what one does, with networks of every kind of family."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from branchgrpo.rollout_workers.policies.base import load_weights
from branchgrpo.rollout_workers.policies.load import load_policy
from diffusers import DiffusionPipeline
from families import FAMILIES, as_lora, saved
from ranks import SETTINGS, assert_all_is_exported, assert_one_learns_the_same
from support import Settings

NAMES = (
    "Chroma",
    "FLUX.1 Kontext",
    "FLUX.2 dev",
    "FLUX.2 klein, pictures",
    "HunyuanVideo 1.5",
    "LTX-2",
    "Qwen-Image 2.1",
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
PARTITIONED = [f"stage3 partitioned {family}" for family in NAMES]
MERGED = "stage3 partitioned start merged Wan 2.2 14B"
VARIANTS = [*PARTITIONED, "stage2 Wan 2.2 14B", MERGED]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What is trained: each family with shared weights, and two networks at once in other ways."""
    changes: dict[str, dict[str, Any]] = {
        variant: {
            "learner.zero_stage": 3,
            "name": "partitioned",
            "policy.pretrained": str(saved(family, tmp_path_factory.mktemp("family") / "pipeline")),
            "policy.height": min(FAMILIES[family].size[0], 32),
            "policy.width": 32,
            "policy.frames": FAMILIES[family].frames,
            "schedule": {"steps": 3, "splits": {0: 2, 1: 2}, "eta": 0.7},
            "policy.max_sequence_length": FAMILIES[family].tokens,
            "prompts.picture_column": f"pictures {count}" if (count := FAMILIES[family].pictures) else None,
            "learner.rows_per_micro_batch": 1,  # so that the ranks come to different networks of Wan 2.2 at a time
        }
        for variant, family in zip(PARTITIONED, NAMES, strict=True)
    }
    video = changes["stage3 partitioned Wan 2.2 14B"]
    lora = as_lora(DiffusionPipeline.from_pretrained(video["policy.pretrained"]), tmp_path_factory.mktemp("lora"))
    changes["stage2 Wan 2.2 14B"] = {**video, "name": "run", "learner.zero_stage": 2}
    changes[MERGED] = {**video, "policy.start_from": str(lora), "learner.lora": {"rank": 2}}
    return {name: SETTINGS | own for name, own in changes.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_match_one_and_their_checkpoint_loads_on_one(
    variant: str, variants: dict[str, dict[str, Any]], two_ranks: Path, settings_in: Settings
) -> None:
    assert_one_learns_the_same(settings_in(two_ranks, variants[variant]), two_ranks / variant)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != MERGED])
def test_what_two_ranks_export_is_what_they_have_trained(variant: str, two_ranks: Path) -> None:
    assert_all_is_exported(two_ranks / variant)


def test_what_two_ranks_export_over_a_merged_lora_is_whole(
    variants: dict[str, dict[str, Any]], two_ranks: Path, settings_in: Settings, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path, variants[MERGED])
    policy = load_policy(settings.policy)
    policy.add_lora(settings.learner.lora)
    load_weights(policy.network, safetensors.torch.load_file(two_ranks / MERGED / "second" / "weights.safetensors"))
    policy.save(tmp_path / "export")
    files = sorted((tmp_path / "export").rglob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        ours = safetensors.torch.load_file(file)
        theirs = safetensors.torch.load_file(two_ranks / MERGED / "export" / file.relative_to(tmp_path / "export"))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, atol=1e-6, rtol=0, msg=name)
