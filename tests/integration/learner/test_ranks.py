"""Several learner ranks do together what one does, however unequal their trees, and their checkpoints load on one."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from branchgrpo.learner.learner import Learner
from branchgrpo.proto.recipe import dump_recipe
from branchgrpo.rollout_workers.policies.base import load_weights
from branchgrpo.rollout_workers.policies.load import load_policy
from diffusers import DiffusionPipeline
from families import PICTURES, as_lora, saved
from ranks import ODD_NAME, SETTINGS, assert_close, learn, run_ranks, unequal_trees
from support import Settings

METHODS = {"dance_grpo": None, "branch_grpo": {"rank": 2}, "tree_grpo": None}
"""With their adapters. A method is only a schedule, and these differ most: many roots, splits below roots, a window."""
FAMILIES = (
    "FLUX.1 Kontext",
    "FLUX.2 klein, pictures",
    "Qwen-Image-Edit Plus",
    "SD1.5",
    "SD3.5",
    "SDXL",
    "Wan 2.2 14B",
    "Z-Image",
)
"""Beside FLUX.1-dev: tables that are no buffers, a UNet, a buffer with weights, tables of angles and two networks."""
VARIANTS = [
    *METHODS,
    *(f"stage{stage}" for stage in range(4)),
    "stage3 offloaded",
    "stage3 partitioned",
    "stage3 partitioned lora",
    "stage3 partitioned kl",
    *(f"stage3 partitioned {family}" for family in FAMILIES),
    "stage2 Wan 2.2 14B",
    "stage3 partitioned start merged",
    "stage3 partitioned start trained",
    "stage3 partitioned start merged Wan 2.2 14B",
]


@pytest.fixture(scope="module")
def variants(
    small_methods: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What is trained: some methods, every ZeRO stage, and families in the third."""
    changes: dict[str, dict[str, Any]] = {f"stage{stage}": {"learner.zero_stage": stage} for stage in range(4)}
    third = {"learner.zero_stage": 3}
    changes |= {
        "stage3 offloaded": {**third, "learner.offload": {"optimizer": True, "parameters": True}},
        "stage3 partitioned": {**third, "name": "partitioned"},
        "stage3 partitioned lora": {**third, "name": "partitioned", "learner.lora": {"rank": 2}},
        "stage3 partitioned kl": {**third, "name": "partitioned", "learner.kl_weight": 50.0},
    }
    for family in FAMILIES:
        changes[f"stage3 partitioned {family}"] = {
            **third,
            "name": "partitioned",
            "policy.pretrained": str(saved(family, tmp_path_factory.mktemp("family") / "pipeline")),
            "policy.width": 32,
            "policy.frames": 5 if "Wan" in family else 1,
            "schedule": {"steps": 3, "splits": {0: 2, 1: 2}, "eta": 0.7},
            **({"policy.max_sequence_length": 500} if "Qwen" in family else {}),
            **({"prompts.picture_column": f"pictures {PICTURES[family]}"} if family in PICTURES else {}),
            "learner.rows_per_micro_batch": 1,  # so that the ranks come to different networks of Wan 2.2 at a time
        }
    changes["stage2 Wan 2.2 14B"] = {
        **changes["stage3 partitioned Wan 2.2 14B"],
        "name": "run",
        "learner.zero_stage": 2,
    }
    tiny = str(saved("FLUX.1-dev", tmp_path_factory.mktemp("family") / "pipeline"))
    video = changes["stage2 Wan 2.2 14B"]["policy.pretrained"]
    one, two = (
        str(as_lora(DiffusionPipeline.from_pretrained(pipeline), tmp_path_factory.mktemp("lora")))
        for pipeline in (tiny, video)
    )
    partitioned = {**third, "name": "partitioned", "policy.pretrained": tiny}
    changes |= {
        "stage3 partitioned start merged": {**partitioned, "policy.start_from": one},
        "stage3 partitioned start trained": {
            **partitioned,
            "policy.start_from": {"path": one, "lora": "train"},
            "learner.lora": {"rank": 2, "alpha": 6},
        },
        "stage3 partitioned start merged Wan 2.2 14B": {
            **changes["stage3 partitioned Wan 2.2 14B"],
            "policy.start_from": two,
            "learner.lora": {"rank": 2},
        },
    }
    for method, lora in METHODS.items():
        schedule = {"method": method, **small_methods[method]}
        changes[method] = {"schedule": schedule, "advantage.normaliser": "group", "learner.lora": lora}
    return {name: SETTINGS | own for name, own in changes.items()}


@pytest.fixture(scope="module")
def two_ranks(
    settings_in: Settings,
    variants: dict[str, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What two ranks have saved, by variant, after one update and after two."""
    folder = tmp_path_factory.mktemp("ranks") / ODD_NAME
    folder.mkdir()
    for name, changes in variants.items():
        (folder / f"{name}.yaml").write_text(dump_recipe(settings_in(folder, changes)))
    run_ranks(2, folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_match_one_and_their_checkpoint_loads_on_one(
    variant: str,
    variants: dict[str, dict[str, Any]],
    two_ranks: Path,
    settings_in: Settings,
) -> None:
    settings = settings_in(two_ranks, variants[variant])
    trees = unequal_trees(load_policy(settings.policy.merged), settings)
    learner = Learner(load_policy(settings.policy), settings)
    checkpoints = two_ranks / variant
    norm = learn(learner, trees)  # AdamW hides a gradient's scale; its norm doesn't
    assert norm == pytest.approx(float((checkpoints / "first" / "norm").read_text()), rel=1e-4)
    assert_close(learner, checkpoints / "first")

    policy = load_policy(settings.policy)
    resumed = Learner(policy, settings)
    resumed.load(checkpoints / "first")
    assert_close(resumed, checkpoints / "first", exactly=True)
    learn(resumed, trees)
    assert_close(resumed, checkpoints / "second")


def test_what_two_ranks_export_over_a_merged_lora_is_whole(
    variants: dict[str, dict[str, Any]], two_ranks: Path, settings_in: Settings, tmp_path: Path
) -> None:
    variant = "stage3 partitioned start merged Wan 2.2 14B"
    settings = settings_in(tmp_path, variants[variant])
    policy = load_policy(settings.policy)
    policy.add_lora(settings.learner.lora)
    load_weights(policy.network, safetensors.torch.load_file(two_ranks / variant / "second" / "weights.safetensors"))
    policy.save(tmp_path / "export")
    files = sorted((tmp_path / "export").rglob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        ours = safetensors.torch.load_file(file)
        theirs = safetensors.torch.load_file(two_ranks / variant / "export" / file.relative_to(tmp_path / "export"))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "start merged Wan" not in name])
def test_what_two_ranks_export_is_what_they_have_trained(variant: str, two_ranks: Path) -> None:
    def values(*files: Path) -> Counter[bytes]:
        """Without names: diffusers has its own for adapters, and for the layers of a second network."""
        loaded = (safetensors.torch.load_file(file) for file in files)
        return Counter(value.numpy().tobytes() for weights in loaded for value in weights.values())

    folder = two_ranks / variant
    assert values(folder / "second" / "weights.safetensors") <= values(*(folder / "export").rglob("*.safetensors"))
