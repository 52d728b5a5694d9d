"""What leaves are, from the decoder to the reward and the page: pictures, clips, sounds, or clips with sound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["picture", "clip", "sound", "clip with sound"]
Pictures = npt.NDArray[np.uint8]
Sound = npt.NDArray[np.int16]
FRAME_RATE = 16.0
"""Frames per second of clips of which nothing else is said: Wan makes so many."""
SAMPLE_RATE = 44_100
"""Samples per second of sounds of which nothing else is said."""
PICTURES, SOUND = "media", "sound"
"""Names of the arrays in files and score requests."""


@dataclass(frozen=True)
class Media:
    """Finished leaves, all of one kind, size and length.

    Raises ValueError for arrays of another type or shape, without any leaf, or of different numbers of leaves.
    """

    pictures: Pictures | None = None
    """Pictures, uint8 [n, height, width, 3], or clips [n, frames, height, width, 3]; None for sounds alone."""
    sound: Sound | None = None
    """Waveforms, int16 [n, channels, samples], from -32767 to 32767; None for what is silent."""
    frame_rate: float = FRAME_RATE
    """Frames of a clip per second."""
    sample_rate: int = SAMPLE_RATE
    """Samples of a sound per second, in each channel."""

    def __post_init__(self) -> None:
        pictures, sound = self.pictures, self.sound
        if pictures is None and sound is None:
            raise ValueError("media is nothing; it must be pictures, clips or sounds")
        if pictures is not None and (
            pictures.dtype != np.uint8 or pictures.ndim not in (4, 5) or pictures.shape[-1] != 3
        ):
            raise ValueError(
                f"media is {pictures.dtype} {list(pictures.shape)}; it must be uint8 [n, height, width, 3], or "
                "[n, frames, height, width, 3] for clips"
            )
        if sound is not None and (sound.dtype != np.int16 or sound.ndim != 3 or not min(sound.shape[1:])):
            raise ValueError(f"sound is {sound.dtype} {list(sound.shape)}; it must be int16 [n, channels, samples]")
        if pictures is not None and sound is not None and len(pictures) != len(sound):
            raise ValueError(f"{len(pictures)} clips came with {len(sound)} sounds")
        for name, rate in (("frame_rate", self.frame_rate), ("sample_rate", self.sample_rate)):
            if not 0 < rate < math.inf:
                raise ValueError(f"{name} is {rate}; it must be more than 0")

    @property
    def kind(self) -> Kind:
        """What each leaf is."""
        if self.pictures is None:
            return "sound"
        if self.sound is None:
            return "picture" if self.pictures.ndim == 4 else "clip"
        return "clip with sound"

    def __len__(self) -> int:
        return len(next(iter(self.arrays().values())))

    def __getitem__(self, chosen: slice | npt.NDArray[np.int64]) -> Media:
        """Some of the leaves."""
        pictures, sound = self.pictures, self.sound
        return replace(
            self,
            pictures=None if pictures is None else pictures[chosen],
            sound=None if sound is None else sound[chosen],
        )

    def __iter__(self) -> Iterator[Media]:
        """Each leaf by itself, as media of one."""
        return (self[number : number + 1] for number in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    @property
    def frames(self) -> int:
        """Pictures in each leaf: 1 for a picture, 0 for a sound."""
        return 0 if self.pictures is None else math.prod(self.pictures.shape[1:-3])

    @property
    def waveforms(self) -> npt.NDArray[np.float32]:
        """The sounds as numbers from -1 to 1, float32 [n, channels, samples]. Raises ValueError for silent media."""
        if self.sound is None:
            raise ValueError(f"a {self.kind} has no sound")
        return self.sound.astype(np.float32) / np.float32(np.iinfo(np.int16).max)

    def looks(self) -> Pictures:
        """What is seen of the leaves: pictures and clips as they are, of sounds their spectrograms, uint8 [n, height,
        width, 3]."""
        if self.pictures is not None:
            return self.pictures
        from .spectrogram import spectrogram

        return np.stack([spectrogram(own, self.sample_rate) for own in self.waveforms.mean(axis=1)])

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for files and score requests; with `facts`, all that `from_arrays` needs."""
        named = {PICTURES: self.pictures, SOUND: self.sound}
        return {name: array for name, array in named.items() if array is not None}

    def facts(self) -> dict[str, str]:
        """The rates as texts, where there is something that has them."""
        clip = {"frame_rate": str(self.frame_rate)} if self.kind.startswith("clip") else {}
        return clip | ({"sample_rate": str(self.sample_rate)} if self.sound is not None else {})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> Media:
        """What `arrays` and `facts` were made of; other names in either are passed over. Raises ValueError as the
        class does, and for rates that aren't numbers."""
        rates = float(facts.get("frame_rate", FRAME_RATE)), int(facts.get("sample_rate", SAMPLE_RATE))
        return cls(arrays.get(PICTURES), arrays.get(SOUND), *rates)


def joined(parts: Sequence[Media]) -> Media:
    """All leaves of `parts`, in their order. Raises ValueError if they are not alike."""
    first = parts[0]
    if odd := [part for part in parts if (part.kind, part.facts()) != (first.kind, first.facts())]:
        raise ValueError(f"a {first.kind} {first.facts()} and a {odd[0].kind} {odd[0].facts()} are not alike")
    each = [part.arrays() for part in parts]
    arrays = {name: np.concatenate([own[name] for own in each]) for name in each[0]}
    return Media.from_arrays(arrays, first.facts())


def some_frames(look: Pictures, count: int) -> Pictures:
    """A picture as one frame, or up to `count` frames of a clip at equal distances from the first to the last, uint8
    [frames, height, width, 3]."""
    if look.ndim == 3:
        return look[None]
    return look[np.linspace(0, len(look) - 1, min(count, len(look))).round().astype(int)]
