"""Two learner ranks do together what one does, at every ZeRO stage, with networks of every kind of family."""

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
    changes: dict[str, dict[str, Any]] = {
        family: {
            "learner.zero_stage": stage,
            "name": "partitioned" if stage == 3 else "run",
            "policy.pretrained": str(folders[family]),
            "policy.height": min(FAMILIES[family].size[0], 32),
            "policy.width": 32,
            "policy.frames": FAMILIES[family].frames,
            "schedule": {"steps": 3, "splits": {0: 2, 1: 2}, "eta": 0.7},
            "policy.max_sequence_length": FAMILIES[family].tokens,
            "prompts.picture_column": f"pictures {count}" if (count := FAMILIES[family].pictures) else None,
            "learner.rows_per_micro_batch": 1,  # so that the ranks come to different networks of Wan 2.2 at a time
        }
        for family in NAMES
    }
    video = changes["Wan 2.2 14B"]
    lora = as_lora(DiffusionPipeline.from_pretrained(video["policy.pretrained"]), tmp_path_factory.mktemp("lora"))
    changes[MERGED] = {**video, "policy.start_from": str(lora), "learner.lora": {"rank": 2}}
    return {name: SETTINGS | own for name, own in changes.items()}


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
