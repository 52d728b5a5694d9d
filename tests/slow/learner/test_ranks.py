"""Learner ranks that continue from the checkpoints of other numbers of ranks."""

from pathlib import Path

import safetensors.torch
import torch
from branchgrpo.learner.learner import Learner
from branchgrpo.proto.checkpoint_files import EMA, WEIGHTS
from branchgrpo.proto.recipe import dump_recipe
from branchgrpo.proto.settings import RunSettings
from branchgrpo.rollout_workers.policies.load import load_policy
from ranks import ODD_NAME, SETTINGS, assert_close, learn, run_ranks, unequal_trees
from support import Settings


def test_other_numbers_of_ranks_go_on_from_a_checkpoint(settings_in: Settings, tmp_path: Path) -> None:
    """Three from two and from one, and one from three, at every ZeRO stage."""
    two, three = (tmp_path / ODD_NAME / ranks for ranks in ("two", "three"))
    three.mkdir(parents=True)
    two.mkdir()

    def settings_of(stage: int) -> RunSettings:
        return settings_in(tmp_path, {**SETTINGS, "learner.zero_stage": stage, "learner.ema_decay": 0.5})

    for stage in range(4):
        (two / f"{stage}.yaml").write_text(dump_recipe(settings_of(stage)))
    run_ranks(2, two)
    for stage in range(4):
        settings = settings_of(stage)
        one = Learner(load_policy(settings.policy), settings)
        learn(one, unequal_trees(load_policy(settings.policy), settings))
        first = two / f"{stage} of one" / "first"
        first.mkdir(parents=True)
        one.save(first)
        for source in (f"{stage}", f"{stage} of one"):
            (three / f"{source}.yaml").write_text(dump_recipe(settings))
    run_ranks(3, three, two)
    for stage in range(4):
        for file in (WEIGHTS, EMA):
            expected, *found = (
                safetensors.torch.load_file(folder / "second" / file)
                for folder in (two / f"{stage}", three / f"{stage}", three / f"{stage} of one")
            )
            for name, value in expected.items():
                for weights in found:
                    torch.testing.assert_close(weights[name], value, atol=3e-5, rtol=0, msg=f"{stage} {file} {name}")
        settings = settings_of(stage)
        one = Learner(load_policy(settings.policy), settings)
        one.load(three / f"{stage}" / "second")
        assert_close(one, three / f"{stage}" / "second", exactly=True)
