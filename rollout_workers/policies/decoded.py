"""Leaves as an autoencoder decodes them, before they become media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...proto.media import FRAME_RATE, SAMPLE_RATE, Media

MEDIA_BYTES = {"pictures": 1, "sound": 2}
"""Bytes of each number of a finished leaf."""


@dataclass(frozen=True)
class Decoded:
    """Decoded rows of one kind. A policy whose leaves are pictures, or clips of 16 frames per second, may return the
    tensor alone."""

    pictures: torch.Tensor | None = None
    """Pictures in [0, 1], float32 [rows, height, width, 3], or clips [rows, frames, height, width, 3]."""
    sound: torch.Tensor | None = None
    """Waveforms in [-1, 1], float32 [rows, channels, samples]."""
    frame_rate: float = FRAME_RATE
    sample_rate: int = SAMPLE_RATE

    @classmethod
    def of(cls, returned: torch.Tensor | Decoded) -> Decoded:
        """What `Policy.decode` has returned."""
        return returned if isinstance(returned, Decoded) else cls(returned)

    @classmethod
    def joined(cls, parts: Sequence[Decoded]) -> Decoded:
        """The rows of all parts."""
        return parts[0]._with(
            {name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
        )

    def filled(self) -> Decoded:
        """These rows with 0 for whatever isn't a number."""
        return self._with({name: tensor.nan_to_num() for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> tensor, for pictures and sound as far as they are there."""
        named = {"pictures": self.pictures, "sound": self.sound}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def finite(self) -> torch.Tensor:
        """Whether all of a row is finite, bool [rows], on the CPU."""
        each = [torch.isfinite(tensor).flatten(1).all(dim=1).cpu() for tensor in self.tensors().values()]
        return torch.stack(each).all(dim=0)

    def media(self) -> Media:
        """The rows in whole numbers, as everything but the autoencoder has them."""
        pictures, sound = self.pictures, self.sound
        return Media(
            None if pictures is None else (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy(),
            None if sound is None else _whole(sound),
            self.frame_rate,
            self.sample_rate,
        )

    def _with(self, tensors: Mapping[str, torch.Tensor]) -> Decoded:
        return Decoded(tensors.get("pictures"), tensors.get("sound"), self.frame_rate, self.sample_rate)


def _whole(sound: torch.Tensor) -> np.ndarray:
    return (sound.float().clamp(-1, 1) * torch.iinfo(torch.int16).max).round().to(torch.int16).cpu().numpy()
