"""Runs that start from what another run has trained: its checkpoints, its export, and runs that started from these."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.run.start_point import find_start
from branchgrpo.proto.errors import InputError
from branchgrpo.rollout_workers.policies.load import load_policy
from families import saved
from start_from import LORA, SMALL, begin_where_another_ended, run, train_lora_further
from support import Settings, assert_bit_equal, trained_policy, weights


@pytest.mark.parametrize(
    ("first", "second"),
    [(None, LORA), (LORA, None), (LORA, LORA)],
    ids=["full, then LoRA", "LoRA, then full", "LoRA, then LoRA"],
)
def test_a_run_begins_where_another_has_ended(first: Any, second: Any, run_settings: Settings) -> None:
    begin_where_another_ended(first, second, run_settings)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "LoRA"])
def test_a_run_that_is_resumed_has_started_where_it_did(lora: Any, run_settings: Settings) -> None:
    """Whatever the other run does since, such as going on, or being removed."""
    one = run_settings({**SMALL, "iterations": 1, "name": "one"})
    before = run(one)
    own = {"learner.lora": lora, "name": "two", "policy.start_from": str(before.path)}
    two = run_settings({**SMALL, **own, "iterations": 1})
    after, start = run(two), str(before.checkpoint(1).resolve())
    assert after.settings.policy.start_from.path == start

    run(one.model_copy(update={"iterations": 2}), resume=True)
    run(two.model_copy(update={"iterations": 2}), resume=True)
    assert after.settings.policy.start_from.path == start
    whole = weights(after.path)
    run(two.model_copy(update={"iterations": 2}), resume=True, back_to=0)
    assert_bit_equal(weights(after.path), whole)
    shutil.rmtree(before.path)
    again = two.model_copy(update={"iterations": 3})
    if lora is None:  # a checkpoint of all weights stands for itself
        run(again, resume=True)
        trained_policy(after)
        with pytest.raises(InputError, match="isn't there"):
            run(again, resume=True, back_to=0)
        return
    gone = r"policy\.start_from\.path is '.*iteration-000001': it isn't there"
    for needs_it in (lambda: run(again, resume=True), lambda: trained_policy(after)):
        with pytest.raises(InputError, match=gone):
            needs_it()


def test_a_lora_of_a_run_is_trained_further(run_settings: Settings) -> None:
    train_lora_further(run_settings)


def test_the_kl_term_s_reference_is_what_was_started_from(run_settings: Settings) -> None:
    before = run(run_settings({**SMALL, "name": "one"}))
    for name, lora in (("two", None), ("three", LORA)):
        changes = {"learner.lora": lora, "learner.kl_weight": 0.1, "policy.start_from": str(before.path), "name": name}
        first, second = run(run_settings({**SMALL, **changes})).lines("metrics")
        assert abs(first["kl"]) < 1e-6 < second["kl"]


def test_iteration_and_average_are_chosen(run_settings: Settings) -> None:
    before = run(run_settings({**SMALL, "name": "one"}))
    for start, file in (
        ({"iteration": 1}, before.checkpoint(1) / "weights.safetensors"),
        ({"ema": True}, before.checkpoint(2) / "ema.safetensors"),
        ({"iteration": "best", "ema": True}, before.checkpoint(2) / "ema.safetensors"),  # the one that was evaluated
    ):
        given = {"path": str(before.path), **start}
        settings = find_start(run_settings({**SMALL, "policy.start_from": given}))
        assert settings.policy.start_from.path == str(file.parent.resolve())
        policy = load_policy(settings.policy)
        expected = safetensors.torch.load_file(file)
        for name, value in policy.network.named_parameters():
            assert (value == expected[name]).all(), name


def test_what_can_t_be_started_from_is_refused(run_settings: Settings, tmp_path: Path) -> None:
    lora = run(run_settings({**SMALL, "learner.lora": LORA, "name": "one", "iterations": 1, "learner.ema_decay": None}))
    full = run(run_settings({**SMALL, "name": "full", "iterations": 1, "learner.ema_decay": None}))
    other = saved("SD3.5", tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.safetensors").write_text("no")
    safetensors.numpy.save_file({"a.weight": np.ones(2)}, tmp_path / "plain.safetensors")
    foreign = {f"transformer.nowhere.to_q.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
    safetensors.numpy.save_file(foreign, tmp_path / "foreign.safetensors")
    encoder = {f"text_encoder.layers.0.q.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
    safetensors.numpy.save_file(encoder, tmp_path / "encoder.safetensors")
    whole = load_policy(run_settings().policy)
    whole.save(tmp_path / "whole")
    train_it = {"lora": "train"}
    for start, more, told in (
        ({"path": tmp_path / "nowhere"}, {}, "nowhere', which isn't there"),
        ({"path": tmp_path / "empty"}, {}, "it is no run, no LoRA, and no network of diffusers'"),
        ({"path": tmp_path / "notes.safetensors"}, {}, "is no whole safetensors file"),
        ({"path": tmp_path / "plain.safetensors"}, {}, "holds no LoRA: its first name is 'a.weight'"),
        ({"path": tmp_path / "foreign.safetensors"}, {}, "a LoRA of another architecture: it has 'nowhere.to_q'"),
        ({"path": tmp_path / "encoder.safetensors"}, {}, "has 'text_encoder.layers.0.q.lora_A.weight' and 1 more"),
        ({"path": other}, {}, "is a SD3Transformer2DModel, and policy.pretrained has a FluxTransformer2DModel"),
        ({"path": lora.path, "iteration": 7}, {}, "has no checkpoint of iteration 7; there are 1"),
        ({"path": lora.path, "ema": True}, {}, "policy.start_from.path is '"),
        ({"path": tmp_path / "whole", "ema": True}, {}, "policy.start_from.ema is of these"),
        ({"path": tmp_path / "whole", "iteration": 1}, {}, "policy.start_from.iteration chooses among its checkpoints"),
        ({"path": tmp_path / "whole", **train_it}, {"learner.lora": LORA}, "it is no LoRA, which"),
        ({"path": full.path, **train_it}, {"learner.lora": LORA}, "it is no LoRA, which"),
        (
            {"path": lora.path, **train_it},
            {"learner.lora": {"rank": 3, "alpha": 8}},
            "learner.lora has rank 3 and alpha 8, and the LoRA to be trained further rank 2 and alpha 8; give",
        ),
        (
            {"path": lora.path, **train_it},
            {"learner.lora": {**LORA, "target_modules": ["to_q"]}},
            "learner.lora.target_modules is ['to_q'], and the LoRA to be trained further has",
        ),
    ):
        given = {**start, "path": str(start["path"])}
        settings = run_settings({**SMALL, **more, "name": "two", "policy.start_from": given})
        with pytest.raises(InputError) as refused:
            run(settings)
        assert told in str(refused.value)
        assert "\n" not in str(refused.value)
        assert check(settings).missing == [str(refused.value)]
        assert not (settings.runs / "two").exists()
    with pytest.raises(InputError, match="policy.start_from.lora is 'train' and learner.lora is null"):
        run_settings({"policy.start_from": {"path": str(lora.path), **train_it}})
