"""Learner ranks as processes: `run_ranks` starts them, and this file is each of them.

Its arguments are RANK RANKS PORT FOLDER, where FOLDER/*.yaml are recipes. It learns from two trees whose scores a fixed
generator makes, of which the second keeps no edge; saves; learns again. With a fifth argument, the FOLDER of other
ranks, it continues from what those have saved in between. With shares of one network, ranks sample in step before the
second update.
"""

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["DS_ACCELERATOR"] = "cpu"

import numpy as np
import pytest
import safetensors.torch
import torch
from branchgrpo.learner.deepspeed_setup import join_ranks
from branchgrpo.learner.learner import Learner
from branchgrpo.learner.partitioned import gathering, partitioned
from branchgrpo.proto.recipe import dump_recipe, load_recipe
from branchgrpo.proto.settings import RolloutSettings, RunSettings
from branchgrpo.proto.tree import Task, Tree, Window
from branchgrpo.rollout_workers.in_step import WorkerInStep
from branchgrpo.rollout_workers.policies.base import Policy, add_adapters, collate, load_weights
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from families import FAMILIES, with_pictures
from support import Settings

ODD_NAME = "a run [1]+lr=3 (x)*? é"
"""What run names may hold."""


SETTINGS = {
    "prompts.per_iteration": 2,
    "learner.updates_per_iteration": 1,
    "learner.optimizer.gradient_clipping": 0.5,
}


def of_family(name: str, pipeline: Path, stage: int) -> dict[str, Any]:
    """What a variant changes that trains a family at a ZeRO stage. At stage 3 a rank loads only its share."""
    family = FAMILIES[name]
    return {
        **SETTINGS,
        "name": "partitioned" if stage == 3 else "run",
        "learner.zero_stage": stage,
        "learner.rows_per_micro_batch": 1,  # so that the ranks come to different networks of Wan 2.2 at a time
        "policy.pretrained": str(pipeline),
        "policy.height": min(family.size[0], 32),
        "policy.width": 32,
        "policy.frames": family.frames,
        "policy.max_sequence_length": family.tokens,
        "prompts.picture_column": f"pictures {family.pictures}" if family.pictures else None,
        "schedule": {"steps": 3, "splits": {0: 2, 1: 2}, "eta": 0.7},
    }


ROOMY = RolloutSettings(max_batch_rows=64)


def run_ranks(count: int, *folders: Path) -> None:
    """Have so many ranks work on the recipes of the first folder."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(count), str(port), *map(str, folders)],
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


def learn_on_two(settings_in: Settings, variants: Mapping[str, dict[str, Any]], folder: Path) -> Path:
    """Have two ranks learn what `variants` say. Returns the folder of what they have saved, by variant, after one
    update and after two."""
    folder = folder / ODD_NAME
    folder.mkdir()
    for name, changes in variants.items():
        (folder / f"{name}.yaml").write_text(dump_recipe(settings_in(folder, changes)))
    run_ranks(2, folder)
    return folder


def assert_one_learns_the_same(settings: RunSettings, checkpoints: Path) -> None:
    """One rank trains what two have, and goes on from their checkpoint."""
    trees = unequal_trees(load_policy(settings.policy.merged), settings)
    learner = Learner(load_policy(settings.policy), settings)
    norm = learn(learner, trees)  # AdamW hides a gradient's scale; its norm doesn't
    assert norm == pytest.approx(float((checkpoints / "first" / "norm").read_text()), rel=1e-4)
    assert_close(learner, checkpoints / "first")

    policy = load_policy(settings.policy)
    resumed = Learner(policy, settings)
    resumed.load(checkpoints / "first")
    assert_close(resumed, checkpoints / "first", exactly=True)
    learn(resumed, trees)
    assert_close(resumed, checkpoints / "second")


def assert_all_is_exported(checkpoints: Path) -> None:
    """What was trained is in the export. Without names: diffusers has its own for adapters, and for the layers of a
    second network."""

    def values(*files: Path) -> Counter[bytes]:
        loaded = (safetensors.torch.load_file(file) for file in files)
        return Counter(value.numpy().tobytes() for weights in loaded for value in weights.values())

    exported = values(*(checkpoints / "export").rglob("*.safetensors"))
    assert values(checkpoints / "second" / "weights.safetensors") <= exported


def assert_one_exports_the_same(settings: RunSettings, checkpoints: Path, folder: Path) -> None:
    """What ranks have exported, adapters merged or not, is what one process writes into `folder` of their weights."""
    policy: Any = load_policy(settings.policy)
    if settings.learner.lora:
        policy.add_lora(settings.learner.lora)
    load_weights(policy.network, safetensors.torch.load_file(checkpoints / "second" / "weights.safetensors"))
    policy.save(folder / "export")
    ours, theirs = (
        {file.relative_to(root): safetensors.torch.load_file(file) for file in (root / "export").rglob("*.safetensors")}
        for root in (folder, checkpoints)
    )
    assert ours
    assert {file: own.keys() for file, own in ours.items()} == {file: own.keys() for file, own in theirs.items()}
    for file, own in ours.items():
        for name, value in own.items():
            torch.testing.assert_close(theirs[file][name], value, atol=1e-6, rtol=0, msg=name)


def assert_close(learner: Learner, checkpoint: Path, exactly: bool = False) -> None:
    """Up to three hundredths of a step of 1e-3: AdamW divides a gradient by its own size, and so makes much of the
    rounding of those that are nearly zero."""
    expected = safetensors.torch.load_file(checkpoint / "weights.safetensors")
    tolerance = 0.0 if exactly else 3e-5
    for name, value in learner.weights().items():
        torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=0, msg=name)


def two_trees(settings: RunSettings) -> Task:
    """The task that all ranks learn from."""
    prompts = with_pictures(("123", "456"), _pictures(settings))
    return Task(1, (0, 1), prompts, settings.schedule.build(), seed=7)


def grown(worker: RolloutWorker, task: Task) -> list[Tree]:
    trees = [Tree(i, prompt, task.schedule) for i, prompt in enumerate(task.prompts)]
    for part in worker.sample(task):
        trees[part.tree].add(part)
    return trees


def unequal_trees(policy: Policy, settings: RunSettings) -> list[Tree]:
    """A tree with random scores, and one whose equal scores leave no edge with an advantage."""
    trees = grown(RolloutWorker(policy, ROOMY), two_trees(settings))
    schedule = trees[0].schedule
    leaves = np.arange(schedule.first_node[-2], schedule.nodes)
    scores = np.random.default_rng(3).random(schedule.leaves)
    for tree, given in zip(trees, (scores, np.full(schedule.leaves, 0.3)), strict=True):
        tree.add_scores(leaves, {"ocr": given, "ocr_exact": given})
    return trees


def _pictures(settings: RunSettings) -> int:
    """How many pictures a prompt has: as many as the digit at the end of their column's name says."""
    return int((settings.prompts.picture_column or "0")[-1])


def learn(learner: Learner, trees: list[Tree]) -> float:
    """Make an update and return its gradient's norm. The first one is with the weights that sampled the trees."""
    learner.accumulate(Window(1, trees, closes_update=True))
    first, stats = learner.engine.module.global_steps == 0, learner.step()
    assert (stats.logprob_abs_diff < 1e-5) == first, stats
    kept = trees if learner.reference else trees[:1]
    assert stats.edges == sum(tree.schedule.trained_edges for tree in kept), stats
    assert stats.edges + stats.skipped_edges == sum(tree.schedule.trained_edges for tree in trees), stats
    return stats.gradient_norm


def assert_shared(network: torch.nn.Module, ranks: int) -> None:
    """No rank holds more of a parameter than its share."""
    whole = {name: parameter.ds_numel for name, parameter in network.named_parameters()}
    held = {name: parameter.ds_tensor.numel() for name, parameter in network.named_parameters()}
    assert all(parameter.numel() == 0 for parameter in network.parameters())
    assert sum(whole.values()) > 10_000
    assert all(held[name] <= -(-whole[name] // ranks) for name in whole)


def assert_same_network(settings: RunSettings) -> None:
    """A network that is shared predicts what a whole one does, bit by bit, in bfloat16 too."""
    for precision in ("float32", "bfloat16"):
        own = settings.policy.model_copy(update={"precision": precision})
        build = partitioned(settings.learner, precision, torch.device("cpu"))
        shared, whole = load_policy(own, network_only=True, build=build), load_policy(own)
        tables, expected = _tables(shared.network), _tables(whole.network)
        assert tables.keys() == expected.keys()
        for name, table in expected.items():
            assert tables[name].dtype == table.dtype, name
            assert torch.equal(tables[name], table), name

        torch.manual_seed(0)
        states, sigma = torch.randn(2, *whole.latent_shape), torch.tensor([0.95, 0.3])
        conditioning = collate([whole.encode(prompt) for prompt in with_pictures(("12", "345"), _pictures(settings))])
        module = gathering(shared.network, settings.learner, precision)
        with torch.no_grad():
            found = shared.velocity(states, sigma, conditioning, module)
            with mock.patch("torch.nn.functional.linear", torch._C._nn.linear):  # that ZeRO 3 has replaced
                assert torch.equal(found, whole.velocity(states, sigma, conditioning)), precision


def assert_samples_in_step(learner: Learner, expected: list[Tree]) -> None:
    """Ranks sample with shares of one network what a process with all of it does, bit by bit, whatever others do.

    First rank 0 samples, and its pass over a depth meets many of rank 1, which has less room. Then rank 1 alone has a
    task.
    """
    task, rank = two_trees(learner.settings), learner.engine.rank
    rows = ROOMY if rank == 0 else RolloutSettings(max_batch_rows=1)
    shared = learner.policy, rows, 0, learner.engine.module
    found = grown(WorkerInStep(*shared), task)
    if rank == 0:
        _assert_equal(found, expected)
        WorkerInStep(*shared).accompany(task)
    else:
        _assert_equal(grown(WorkerInStep(learner.policy, ROOMY, 0, learner.engine.module), task), expected)


def sampled_by_one(learner: Learner, settings: RunSettings) -> list[Tree]:
    """The trees that a process with the whole network samples, with the learner's present weights."""
    policy, weights = load_policy(settings.policy), [learner.weights()]
    torch.distributed.broadcast_object_list(weights)
    if settings.learner.lora:
        add_adapters(policy, settings.learner.lora, settings.seed)
    load_weights(policy.network, weights[0])
    return grown(RolloutWorker(policy, ROOMY), two_trees(settings))


def _assert_equal(found: list[Tree], expected: list[Tree]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
        assert all(torch.equal(one.state(node), other.state(node)) for node in range(one.schedule.nodes))


def _tables(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers, and tensors that are neither buffers nor parameters."""
    plain = {
        f"{name}.{own}": value
        for name, module in network.named_modules()
        for own, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }
    return {**plain, **dict(network.named_buffers())}


def main(rank: int, ranks: int, port: int, folder: Path, source: Path | None = None) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, ranks, rank == 0)
    join_ranks(store, torch.device("cpu"), rank=rank, ranks=ranks)
    # ZeRO 3 changes torch for good, so it comes last.
    for recipe in sorted(folder.glob("*.yaml")):
        settings = load_recipe(recipe)
        trees = unequal_trees(load_policy(settings.policy.merged), settings)
        policy = load_policy(settings.policy)
        if settings.name == "partitioned":
            build = partitioned(settings.learner, "float32", torch.device("cpu"))
            policy = load_policy(settings.policy, build=build)
            assert_shared(policy.network, ranks)
            if not (settings.learner.lora or settings.learner.kl_weight or settings.policy.start_from):
                assert_same_network(settings)  # once per family
        learner = Learner(policy, settings)
        if settings.name == "partitioned" and learner.reference and not settings.learner.lora:
            assert_shared(learner.reference.network.module, ranks)
        if source:
            learner.load(source / recipe.stem / "first")
        for name in ("second",) if source else ("first", "second"):
            if name == "second" and settings.name == "partitioned" and not settings.policy.start_from:
                assert_samples_in_step(learner, sampled_by_one(learner, settings))
            norm = learn(learner, trees)
            checkpoint = folder / recipe.stem / name
            checkpoint.mkdir(parents=True, exist_ok=True)
            torch.distributed.barrier()
            learner.save(checkpoint)
            if rank == 0:
                (checkpoint / "norm").write_text(str(norm))
        learner.export(folder / recipe.stem / "export")
        torch.distributed.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *map(Path, sys.argv[4:]))
