"""Tensors as arrays of bits, for transport between processes.

PyTorch is imported only where there are tensors: processes that only pass them on save its seconds and its memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .schedule import IntArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PackedTensor:
    """A tensor as a NumPy array of its bits, which any serialiser moves without copying, bfloat16 too."""

    bits: np.ndarray
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> PackedTensor:
        """The bits of a tensor, copied to the CPU if they aren't there."""
        import torch

        tensor = tensor.detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls((tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy(), dtype)

    def tensor(self) -> torch.Tensor:
        """The tensor over the same memory; not to be written to where that is shared."""
        import torch

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            bits = torch.from_numpy(self.bits)
        return bits.view(torch.bfloat16) if self.dtype == "bfloat16" else bits


@dataclass(frozen=True)
class KeptForward:
    """A forward pass of a rollout with its graph, so that a learner with the same weights needs the backward only."""

    trees: IntArray
    """Number of each row's tree within the iteration, int64 [rows]."""
    nodes: IntArray
    """Each row's node, int64 [rows]."""
    velocity: torch.Tensor
    """[rows, *latent_shape]."""


class ForwardCache:
    """The forward passes that a rollout worker leaves for the learner in its process."""

    def __init__(self) -> None:
        self._forwards: list[KeptForward] = []

    def put(self, forward: KeptForward) -> None:
        """Keep a forward pass until it is drained."""
        self._forwards.append(forward)

    def drain(self) -> Iterator[KeptForward]:
        """All of them, the newest first. Each is forgotten here, so that its graph goes when it has been used."""
        while self._forwards:
            yield self._forwards.pop()
