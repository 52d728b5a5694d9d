"""Tensors and small facts as bytes that carry no code: safetensors with a string header, never pickle."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError


def encode(tensors: Mapping[str, torch.Tensor | np.ndarray], header: Mapping[str, str] | None = None) -> bytes:
    """`tensors` (any dtype that torch knows, bfloat16 too) and a `header` of strings as safetensors bytes."""
    contiguous = {name: torch.as_tensor(value).contiguous() for name, value in tensors.items()}
    return safetensors.torch.save(contiguous, metadata=dict(header) if header else None)


def decode(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the header that `encode` was given. Raises ValueError for anything else."""
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ValueError(f"not safetensors: {error}") from error
    return tensors, _header(data)


def _header(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return dict(header.get("__metadata__", {}))
