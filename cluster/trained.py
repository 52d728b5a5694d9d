"""The policy that a run has trained, and the pictures it draws."""

import json
from pathlib import Path

import safetensors.torch

from ..proto.errors import InputError
from ..proto.files import whole
from ..rollout_workers.policies.base import Policy, load_weights
from ..rollout_workers.policies.load import load_policy
from . import pictures
from .evaluation import Evaluation
from .run_folder import RunFolder


def trained_policy(folder: RunFolder, *, iteration: int | None = None, ema: bool = False) -> Policy:
    """The policy with the weights of a checkpoint, the newest by default; their running average with `ema`."""
    checkpoint = folder.newest_checkpoint() if iteration is None else folder.checkpoint(iteration)
    if not checkpoint.is_dir():
        raise InputError(f"{folder.path} has no checkpoint of iteration {iteration}; there are {folder.checkpoints()}")
    weights = checkpoint / ("ema.safetensors" if ema else "weights.safetensors")
    if not weights.is_file():
        raise InputError(f"{checkpoint} holds no averaged weights; train with learner.ema_decay, or leave out --ema")
    settings = folder.settings
    policy = load_policy(settings.policy)
    if settings.learner.lora:
        policy.add_lora(settings.learner.lora)
    load_weights(policy.network, safetensors.torch.load_file(weights))
    return policy


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """The pictures of an evaluation with their scores, and a grid of them, in the folder `out`."""
    with whole(out) as temporary:
        (temporary / "pictures").mkdir(parents=True)
        lines = []
        for i, (prompt, picture) in enumerate(zip(evaluation.prompts, evaluation.media, strict=True)):
            name = f"pictures/{i:06d}.png"
            pictures.save_picture(temporary / name, picture)
            scores = {reward: float(values[i]) for reward, values in evaluation.rewards.items()}
            lines.append(json.dumps({"prompt": prompt, "picture": name, **scores}))
        (temporary / "scores.jsonl").write_text("\n".join(lines) + "\n")
        columns = min(8, len(evaluation.media))
        rows = [evaluation.media[i : i + columns] for i in range(0, len(evaluation.media) - columns + 1, columns)]
        pictures.sample_grid(temporary / "grid.png", rows[:12])
