"""Private parts of diffusers that this project uses for want of public ones. `pyproject.toml` bounds its version."""

from collections.abc import Sequence
from typing import Any

import torch


def attention_can_be_chosen(network: torch.nn.Module) -> bool:
    """Whether `set_attention_backend` has an effect on a network; others ignore the call."""
    return any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in network.modules())


def has_repeated_blocks(network: torch.nn.Module) -> bool:
    """Whether `compile_repeated_blocks` knows the blocks of which a network is made."""
    return bool(getattr(network, "_repeated_blocks", None))


def rename_old_weights(model: Any, weights: dict[str, Any]) -> None:
    """Give weights with names of older versions of diffusers the names of today, in place."""
    model._fix_state_dict_keys_on_load(weights)


def ignored_weights(model: Any) -> Sequence[str]:
    """Patterns of the names that diffusers skips in the files of a model."""
    return model._keys_to_ignore_on_load_unexpected or ()
