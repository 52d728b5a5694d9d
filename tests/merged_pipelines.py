"""Whole pipelines that `branchgrpo export --merge` writes, and what plain diffusers draws with them."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from branchgrpo.cluster.commands.export import export
from branchgrpo.cluster.run.checkpoints import written
from branchgrpo.cluster.run.evaluation import evaluate
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.trained import policy_with
from branchgrpo.proto.settings import RunSettings
from branchgrpo.reward_service.scorers import Scorers
from branchgrpo.rollout_workers.policies.base import trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from plain_diffusers import STEPS, all_of_theirs, plain, policy_of, prompts_of, starts
from support import COUNTING, Settings

IN_UNIT_TESTS: dict[str, tuple[dict[str, int] | None, dict[str, Any]]] = {
    "FLUX.1-dev": ({"rank": 2, "alpha": 6}, {"shift": 2.0}),
    "SD1.5": (None, {}),
    "Wan 2.2 14B": ({"rank": 2}, {}),
    "Z-Image": ({"rank": 2}, {"sigmas": [1.0, 0.99, 0.9, 0.7, 0.4, 0.15]}),
}
"""Family -> its LoRA and noise levels. `tests/slow` merges the others."""
NOISY = "Stable Audio"
"""The family whose scheduler adds noise, so that nobody draws the same with it."""


def trained(settings: RunSettings) -> RunFolder:
    """A run with one checkpoint, whose weights are random."""
    policy = load_policy(settings.policy)
    if settings.learner.lora:
        policy.add_lora(settings.learner.lora)
    torch.manual_seed(3)
    weights = {name: p + 0.1 * torch.randn_like(p) for name, p in trainable(policy.network).items()}
    with RunFolder.create(settings) as folder:
        folder.append("metrics", {"iteration": 1})
        with written(folder.checkpoint(1)) as temporary:
            safetensors.torch.save_file(weights, temporary / "weights.safetensors")
    return folder


def assert_draws_what_evaluate_drew(
    family: str, lora: dict[str, int] | None, levels: dict[str, Any], run_settings: Settings, folder: Path
) -> None:
    """Plain diffusers draws it, with the pipeline's own scheduler. The pipeline is written to `out` beside `base`."""
    own = policy_of(family, folder / "base").model_copy(update=levels)
    (folder / "base" / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\nText.\n")
    changes = {"policy": own.model_dump(), "schedule": {"steps": STEPS}, "rewards": COUNTING, "learner.lora": lora}
    settings, prompts = run_settings({**changes, "name": "mine"}), prompts_of(family)
    run = trained(settings)
    for iteration, score in ((0, 0.25), (1, 0.75)):
        run.append("evaluations", {"iteration": iteration, "count": score})
    assert export(run.path, folder / "out", "newest", merge=True) == (1, [folder / "out"])

    policy: Any = policy_with(settings, run.checkpoint(1) / "weights.safetensors")
    worker = RolloutWorker(policy, settings.rollout)
    media = evaluate(worker, Scorers(settings.rewards), settings, prompts).media
    noise = starts(policy, settings.evaluation.seed)
    found = all_of_theirs(plain(str(folder / "out")), own, noise, prompts, policy.picture_size, as_it_is=True)
    for name, reference in found.items():
        drawn, largest = getattr(media, name), {"pictures": 255, "sound": 32767}[name]
        assert np.abs(drawn / largest - reference.clip(-1, 1)).max() <= 1.01 / 255
        assert drawn.std() > 2 / 255 * largest
