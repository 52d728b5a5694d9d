"""What a run's processes hold, planned on shapes, beside what an allocator holds, and what fits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from branchgrpo.benchmarks.support.allocated import peak_bytes
from branchgrpo.cluster.plan.fit import UNUSABLE_BYTES, largest_rows, misfit, remedies
from branchgrpo.cluster.plan.gpus import GPUS
from branchgrpo.cluster.plan.memory import count_memory
from branchgrpo.cluster.plan.memory_tables import remedy_line
from branchgrpo.cluster.plan.passes import Calls, measure
from branchgrpo.proto.settings_errors import changed_settings
from branchgrpo.rollout_workers.policies.load import load_policy
from plain_diffusers import policy_of
from support import Settings

CPU = torch.device("cpu")
LORA = {"rank": 4}
ON_RAY = {"execution": "ray", "pools.learner.gpus": 1, "pools.learner.count": 2, "pools.rollout_workers.gpus": 1}


@pytest.mark.parametrize(("family", "side"), [("FLUX.1-dev", 128), ("SD3.5", 64), ("SDXL", 64), ("Z-Image", 64)])
def test_the_plan_is_within_a_tenth_of_the_allocator_s_peak(
    family: str, side: int, run_settings: Settings, tmp_path: Path
) -> None:
    given = policy_of(family, tmp_path).model_copy(update={"height": side, "width": side})
    conditioning = load_policy(given).encode("9 " * 200)
    for lora in (None, LORA):
        for checkpoints in (False, True):
            changes = {"policy": given.model_dump(), "learner.lora": lora}
            settings = run_settings({**changes, "learner.gradient_checkpointing": checkpoints})
            policy: Any = load_policy(given)
            if settings.learner.lora:
                policy.add_lora(settings.learner.lora)
            if checkpoints:
                policy.checkpoint_gradients()
            real, passes = Calls(policy, conditioning, CPU), measure(settings)
            for name in ("train",) if lora or checkpoints else ("train", "forward", "decode"):
                call = getattr(real, name)
                call(1)  # what is made once
                held = peak_bytes(lambda call=call: call(8), CPU)  # type: ignore[misc]
                assert getattr(passes, name).bytes(8) == pytest.approx(held, rel=0.1), (name, lora, checkpoints)


@pytest.mark.parametrize("stage", [1, 3])
def test_one_process_holds_what_two_would_but_one_network(stage: int, run_settings: Settings) -> None:
    """With ZeRO 3 that is its share of it, and what it gathers."""
    changes = {**ON_RAY, "learner.zero_stage": stage}
    apart = count_memory(run_settings(changes))
    ((process, both),) = count_memory(run_settings({**changes, "placement": "colocated"})).items()
    assert process == "2 x samples and learns" + " in step" * (stage == 3)
    worker, rank = apart["1 x rollout worker"], apart["2 x learner rank"]
    passes = measure(run_settings())
    assert both.weights == 4 * passes.parameters / (2 if stage == 3 else 1) + passes.around
    assert both.held == rank.held + worker.held - 4 * passes.parameters
    assert both.activations == max(worker.activations, rank.activations)


def test_the_old_policy_of_nft_is_held_beside_the_trained_one(run_settings: Settings) -> None:
    nft = {"learner.objective": "nft", "schedule": {"method": "nft", "steps": 5, "group": 3}}
    nft |= {"advantage.normaliser": "group", "learner.updates_per_iteration": 1}
    held = {}
    for decay in (0.0, 0.5):
        (held[decay],) = count_memory(run_settings({**nft, "learner.nft": {"old_decay": decay}})).values()
    parameters = measure(run_settings()).parameters
    assert held[0.5].weights - held[0.0].weights == 2 * 4 * parameters  # the average's, and the sampler's network
    assert held[0.5].host - held[0.0].host == 4 * parameters


def test_so_many_rows_fit_and_one_more_does_not(run_settings: Settings) -> None:
    memory = count_memory(run_settings(ON_RAY))["2 x learner rank"]
    ((setting, phase),) = memory.phases.items()
    gpu = UNUSABLE_BYTES + memory.held + phase.taken.bytes(7)
    assert largest_rows(memory, gpu) == {setting: 7}
    assert largest_rows(memory, gpu - 1) == {setting: 6}
    assert largest_rows(memory, UNUSABLE_BYTES) == {setting: 0}


def test_a_misfit_names_the_process_and_the_setting(run_settings: Settings) -> None:
    settings = run_settings({**ON_RAY, "learner.rows_per_micro_batch": 99})
    memory = count_memory(settings)["2 x learner rank"]
    assert misfit(settings, UNUSABLE_BYTES + memory.peak + 1) is None
    told = misfit(settings, UNUSABLE_BYTES + memory.peak - 1)
    assert told is not None
    assert told.startswith("2 x learner rank needs ")
    assert "learner.rows_per_micro_batch=99" in told
    assert misfit(run_settings(), 0) is None, "a run without GPUs has no limit"


def test_remedies_come_in_their_order_and_make_it_fit(run_settings: Settings) -> None:
    alone = {**ON_RAY, "pools.rollout_workers.gpus": 0}
    settings = run_settings({**alone, "learner.rows_per_micro_batch": 99})
    memory = count_memory(settings)["2 x learner rank"]
    made = []
    for share in (1.01, 0.8, 0.6, 0.3):
        gpu = UNUSABLE_BYTES + share * memory.peak
        changes = remedies(settings, gpu)
        assert changes is not None
        made.append([*changes])
        assert misfit(changed_settings(settings, changes), gpu) is None
    order = ["gradient_checkpointing", "lora", "zero_stage", "offload.optimizer", "rows_per_micro_batch"]
    assert made == [[f"learner.{name}" for name in order[:count]] for count in (0, 1, 2, 5)]
    assert remedies(settings, UNUSABLE_BYTES) is None


def test_training_in_full_has_remedies_of_its_own(run_settings: Settings) -> None:
    settings = run_settings({**ON_RAY, "pools.rollout_workers.gpus": 0, "learner.rows_per_micro_batch": 99})
    size = UNUSABLE_BYTES + 0.6 * count_memory(settings)["2 x learner rank"].peak
    changes, whole = remedies(settings, size), remedies(settings, size, lora=False)
    assert changes is not None
    assert whole is not None
    assert ("learner.lora" in changes, "learner.lora" in whole) == (True, False)
    assert misfit(changed_settings(settings, whole), size) is None
    line = remedy_line(settings, changes, replace(GPUS["h100"], memory=size))
    assert "learner.lora={}" in line.partition("; trained in full, with: ")[0]
    assert "learner.gradient_checkpointing=true" in line.partition("; trained in full, with: ")[2]


def test_fewer_rows_leave_encoders_as_they_are(run_settings: Settings) -> None:
    rollout = {"trees_per_task": 4, "max_batch_rows": 16, "decode_batch": 16}
    settings = run_settings({**ON_RAY, "pools.learner.gpus": 0, "rollout": rollout})
    memory = count_memory(settings)["1 x rollout worker"]
    assert 0 < memory.encoders < memory.activations
    gpu = UNUSABLE_BYTES + memory.held + memory.encoders
    changes = remedies(settings, gpu)
    assert changes
    assert misfit(changed_settings(settings, changes), gpu) is None
    assert remedies(settings, gpu - 1) is None
