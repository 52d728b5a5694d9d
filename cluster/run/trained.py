"""The policy that a run has trained, and pictures drawn by it."""

from pathlib import Path

import safetensors.torch
from rich.console import Console

from ...proto.checkpoint_files import EMA, WEIGHTS
from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...rollout_workers.policies.base import Policy, load_weights
from ...rollout_workers.policies.load import load_policy
from .folder import RunFolder, WhichCheckpoint


def trained_weights(folder: RunFolder, which: WhichCheckpoint = "newest", *, ema: bool = False) -> tuple[int, Path]:
    """A checkpoint's iteration, and the file of its weights (with `ema` of their running average), as it was written.

    Says so on standard error if the newest is damaged and the one before is taken. Raises InputError for a checkpoint
    that isn't there, isn't whole, or holds no average.
    """
    name = EMA if ema else WEIGHTS
    iteration = folder.find_checkpoint(which, [name], _tell_damage)
    weights = folder.checkpoint(iteration) / name
    if not weights.is_file():
        raise InputError(f"{weights.parent} holds no averaged weights; train with learner.ema_decay, or omit --ema")
    return iteration, weights


def _tell_damage(checkpoint: Path, why: str) -> None:
    warning = f"checkpoint {checkpoint} is damaged ({why}); taking the one before"
    Console(stderr=True).print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)


def policy_with(settings: RunSettings, weights: Path) -> Policy:
    """The policy of a recipe with the trained weights in a file."""
    own = settings.policy if settings.learner.lora else settings.policy.model_copy(update={"start_from": None})
    policy = load_policy(own)
    if settings.learner.lora:
        policy.add_lora(settings.learner.lora)
    load_weights(policy.network, safetensors.torch.load_file(weights))
    return policy
