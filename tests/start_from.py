"""Small runs that start from what others have trained."""

from typing import Any

import numpy as np
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.evaluation import evaluate
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from branchgrpo.proto.settings import RunSettings
from branchgrpo.reward_service.scorers import Scorers
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from rich.console import Console
from support import COUNTING, Settings

LORA = {"rank": 2, "alpha": 8}
SMALL = {
    "rewards": COUNTING,
    "prompts.per_iteration": 2,
    "learner.updates_per_iteration": 1,
    "learner.optimizer": {"learning_rate": 5e-2},
    "evaluation": {"prompts": 2},
    "learner.ema_decay": 0.5,
    "checkpoint.keep": 9,
    "logging": {"samples_every": 0, "trees_every": 0, "tensorboard": False, "trace": False},
}


def run(settings: RunSettings, **more: Any) -> RunFolder:
    return RunFolder.open(train(settings, RunDisplay(Console(quiet=True)), **more))


def pictures(folder: RunFolder, iteration: int) -> np.ndarray:
    (line,) = (line for line in folder.lines("evaluations") if line["iteration"] == iteration)
    return folder.evaluation(line).media.pictures.astype(int)


def assert_export_draws(settings: RunSettings, folder: RunFolder) -> None:
    """What the run's last evaluation drew, by the published pipeline with the export alone."""
    export = folder.path / "export"
    own = settings.policy.model_copy(update={"start_from": None})
    policy = load_policy(own)
    for name, network in policy.loaded_networks.items():
        if (export / name).is_dir():
            loaded = type(network).from_pretrained(export / name)
            network.load_state_dict(loaded.state_dict())
        else:
            number = list(policy.loaded_networks).index(name)
            file = sorted(export.glob("pytorch_lora_weights*.safetensors"))[number]
            second = {"load_into_transformer_2": True} if number else {}
            policy.pipeline.load_lora_weights(export, weight_name=file.name, **second)
    worker = RolloutWorker(policy, settings.rollout)
    drawn = evaluate(
        worker, Scorers(settings.rewards), settings, folder.evaluation(folder.lines("evaluations")[0]).prompts
    ).media.pictures
    assert np.abs(drawn.astype(int) - pictures(folder, settings.iterations)).max() <= 1


def begin_where_another_ended(first: Any, second: Any, run_settings: Settings, **model: Any) -> None:
    """Two more runs, each from the one before; `first` and `second` are the LoRAs of the first two, or None."""
    model = {**SMALL, **model, "iterations": 1}
    one = run_settings({**model, "learner.lora": first, "name": "one"})
    before = run(one)
    assert np.abs(pictures(before, 1) - pictures(before, 0)).max() > 2
    two = run_settings({**model, "learner.lora": second, "name": "two", "policy.start_from": str(before.path)})
    assert not check(two).missing
    after = run(two)
    assert np.abs(pictures(after, 0) - pictures(before, 1)).max() <= (0 if first is None else 1)
    assert np.abs(pictures(after, 1) - pictures(after, 0)).max() > 2
    assert_export_draws(two, after)

    three = run_settings({**model, "name": "three", "policy.start_from": str(after.path)})
    assert np.abs(pictures(run(three), 0) - pictures(after, 1)).max() <= 1  # through both


def train_lora_further(run_settings: Settings, **model: Any) -> None:
    """A LoRA is trained further from the run, and from its export; what comes out is one over the published weights."""
    lora = {**SMALL, **model, "learner.lora": LORA}
    before = run(run_settings({**lora, "name": "one"}))
    export = before.path / "export"
    for name, path in (("two", before.path), ("three", export)):
        start = {"path": str(path), "lora": "train"}
        settings = run_settings({**lora, "name": name, "policy.start_from": start, "learner.kl_weight": 0.1})
        after = run(settings)
        np.testing.assert_array_equal(pictures(after, 0), pictures(before, 2))
        first, second = after.lines("metrics")
        assert abs(first["kl"]) < 1e-6 < second["kl"]  # the reference is what was started from
        assert_export_draws(settings, after)
        assert not list((after.path / "export").glob("transformer*"))
