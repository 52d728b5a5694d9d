"""Arrays and small facts as bytes that carry no code: safetensors with a string header, never pickle."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError


def encode(arrays: Mapping[str, np.ndarray], header: Mapping[str, str] | None = None) -> bytes:
    """`arrays` (of numbers) and a `header` of strings as safetensors bytes."""
    contiguous = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    return safetensors.numpy.save(contiguous, metadata=dict(header) if header else None)


def decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays (not to be written to) and the header that `encode` was given. Raises ValueError for anything else."""
    try:
        arrays = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise ValueError(f"not safetensors: {error}") from error
    except KeyError as error:
        raise ValueError(f"not safetensors of NumPy's dtypes: {error} is none") from error
    return arrays, _header(data)


def _header(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return dict(header.get("__metadata__", {}))
