"""Tensors and small facts as bytes that carry no code: safetensors with a string header, never pickle."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Packed:
    """A tensor as a NumPy array of its bits, which any serialiser moves without copying, bfloat16 too."""

    bits: np.ndarray
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Packed":
        tensor = tensor.detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls((tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy(), dtype)

    def tensor(self) -> torch.Tensor:
        """The tensor over the same memory; not to be written to where that is shared."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            bits = torch.from_numpy(self.bits)
        return bits.view(torch.bfloat16) if self.dtype == "bfloat16" else bits


def _header(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return dict(header.get("__metadata__", {}))
