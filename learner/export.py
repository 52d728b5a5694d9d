"""The trained weights as files: in diffusers' format, and as one safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from ..proto.atomic_files import whole
from ..rollout_workers.policies.base import Policy


def export(policy: Policy, folder: Path, *, replace: bool = False) -> Path:
    """Write a transformer folder or a LoRA file into the new folder `folder`. Returns what to load.

    Raises FileExistsError if the folder is there, unless it may be replaced as a whole.
    """
    with whole(folder, replace_folder=replace) as temporary:
        temporary.mkdir()
        saved = policy.save(temporary).relative_to(temporary)
    return folder / saved


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Weights as one safetensors file."""
    safetensors.torch.save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, path)
