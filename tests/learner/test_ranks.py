"""Several learner ranks do together what one does, however unequal their trees, and their checkpoints load on one."""

import importlib.util
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.learner import Learner
from branchgrpo.learner.rows import Row, micro_batches, pick_rows
from branchgrpo.proto.recipe import dump_recipe
from branchgrpo.proto.schedule import tree_schedule
from branchgrpo.proto.tree import Tree
from branchgrpo.rollout_workers.policies.base import Policy, load_weights
from branchgrpo.rollout_workers.policies.load import load_policy
from diffusers import DiffusionPipeline
from families import as_lora, saved
from support import Settings

SCRIPT = Path(__file__).with_name("rank.py")
ODD_NAME = "a run [1]+lr=3 (x)*? é"
"""What run names may hold."""
SETTINGS = {
    "prompts.per_iteration": 2,
    "learner.updates_per_iteration": 1,
    "learner.optimizer.gradient_clipping": 0.5,
}


@pytest.fixture(scope="module")
def rank_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rank_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METHODS = {"dance_grpo": None, "branch_grpo": {"rank": 2}, "tree_grpo": None}
"""With their adapters. A method is only a schedule, and these differ most: many roots, splits below roots, a window."""
FAMILIES = ("Qwen-Image", "SD1.5", "SD3.5", "Wan 2.2 14B")
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
            **({"policy.max_sequence_length": 200} if "Qwen" in family else {}),
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


def run_ranks(count: int, *folders: Path) -> None:
    """Have so many ranks work on the recipes of the first folder (`rank.py`)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(count), str(port), *map(str, folders)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        for process in ranks:
            out, _ = process.communicate(timeout=600)
            assert process.returncode == 0, out[-3000:]
    finally:
        for process in ranks:
            process.kill()


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_match_one_and_their_checkpoint_loads_on_one(
    variant: str,
    variants: dict[str, dict[str, Any]],
    two_ranks: Path,
    settings_in: Settings,
    rank_script: ModuleType,
) -> None:
    settings = settings_in(two_ranks, variants[variant])
    trees = rank_script.unequal_trees(load_policy(settings.policy.merged), settings)
    learner = Learner(load_policy(settings.policy), settings)
    checkpoints = two_ranks / variant
    norm = rank_script.learn(learner, trees)  # AdamW hides a gradient's scale; its norm doesn't
    assert norm == pytest.approx(float((checkpoints / "first" / "norm").read_text()), rel=1e-4)
    assert_close(learner, checkpoints / "first")

    policy = load_policy(settings.policy)
    resumed = Learner(policy, settings)
    resumed.load(checkpoints / "first")
    assert_close(resumed, checkpoints / "first", exactly=True)
    rank_script.learn(resumed, trees)
    assert_close(resumed, checkpoints / "second")


@pytest.mark.slow
def test_other_numbers_of_ranks_go_on_from_a_checkpoint(
    variants: dict[str, dict[str, Any]],
    two_ranks: Path,
    settings_in: Settings,
    rank_script: ModuleType,
) -> None:
    """Three from two and from one, and one from three, at every ZeRO stage."""
    stages = [f"stage{stage}" for stage in range(4)]
    three = two_ranks / "three"
    three.mkdir()
    for stage in stages:
        settings = settings_in(two_ranks, variants[stage])
        one = Learner(load_policy(settings.policy), settings)
        rank_script.learn(one, rank_script.unequal_trees(load_policy(settings.policy), settings))
        first = two_ranks / f"{stage} of one" / "first"
        first.mkdir(parents=True)
        one.save(first)
        for source in (stage, f"{stage} of one"):
            (three / f"{source}.yaml").write_text(dump_recipe(settings))
    run_ranks(3, three, two_ranks)
    for stage in stages:
        expected, *found = (
            safetensors.torch.load_file(folder / "second" / "weights.safetensors")
            for folder in (two_ranks / stage, three / stage, three / f"{stage} of one")
        )
        for name, value in expected.items():
            for weights in found:
                torch.testing.assert_close(weights[name], value, atol=3e-5, rtol=0, msg=f"{stage} {name}")
        settings = settings_in(two_ranks, variants[stage])
        one = Learner(load_policy(settings.policy), settings)
        one.load(three / stage / "second")
        assert_close(one, three / stage / "second", exactly=True)


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


def assert_close(learner: Learner, checkpoint: Path, exactly: bool = False) -> None:
    """Up to three hundredths of a step of 1e-3: AdamW divides a gradient by its own size, and so makes much of the
    rounding of those that are nearly zero."""
    expected = safetensors.torch.load_file(checkpoint / "weights.safetensors")
    tolerance = 0.0 if exactly else 3e-5
    for name, value in learner.weights().items():
        torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize(("ranks", "kept"), [(2, 1), (3, 2), (2, 7), (4, 21), (1, 5), (3, 0)])
def test_shares_are_even_and_every_rank_makes_the_same_number_of_passes(
    ranks: int, kept: int, tiny_policy: Policy, sample: Callable[..., list[Tree]]
) -> None:
    schedule = tree_schedule(5, kernel="dance", eta=0.5, splits={0: 2, 2: 2})
    trees = sample(tiny_policy, schedule)
    everything = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))] * len(trees)
    rows: list[Row] = pick_rows(trees, everything)[:kept]
    edges = sum(len(row.children) for row in rows)
    shares = [list(micro_batches(rows, trees, everything, rows=3, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == -(-kept // ranks) // 3 + (-(-kept // ranks) % 3 > 0)
    counted = [sum(int((batch.weights > 0).sum()) for batch in share) for share in shares]
    assert sum(counted) == edges
    real = [sum(len(batch.states) for batch in share if (batch.weights > 0).any()) for share in shares]
    assert sum(real) == kept
    assert max(real) - min(real) <= 1
