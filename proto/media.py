"""What leaves are, from the decoder to the reward and the page: pictures, clips, sounds, or clips with sound; and for
rewards of latents, what these are decoded from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .errors import InputError

Kind = Literal["picture", "clip", "sound", "clip with sound", "latent"]
Reads = Literal["media", "latents"]
"""What a reward reads of leaves: what they are decoded to, or what from."""
Pictures = npt.NDArray[np.uint8]
Sound = npt.NDArray[np.int16]
Latents = npt.NDArray[np.float32]
FRAME_RATE = 16.0
"""Frames per second of clips of which nothing else is said: Wan makes so many."""
SAMPLE_RATE = 44_100
"""Samples per second of sounds of which nothing else is said."""
PICTURES, SOUND, LATENTS = "media", "sound", "latents"
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
    latents: Latents | None = None
    """The policy's own latents, float32 [n, *latent_shape], where a reward reads them."""

    def __post_init__(self) -> None:
        pictures, sound, latents = self.pictures, self.sound, self.latents
        if not self.arrays():
            raise ValueError("media is nothing; it must be pictures, clips, sounds or latents")
        if pictures is not None and (
            pictures.dtype != np.uint8
            or pictures.ndim not in (4, 5)
            or pictures.shape[-1] != 3
            or not min(pictures.shape[1:])
        ):
            raise ValueError(
                f"media is {pictures.dtype} {list(pictures.shape)}; it must be uint8 [n, height, width, 3], or "
                "[n, frames, height, width, 3] for clips"
            )
        if sound is not None and (sound.dtype != np.int16 or sound.ndim != 3 or not min(sound.shape[1:])):
            raise ValueError(f"sound is {sound.dtype} {list(sound.shape)}; it must be int16 [n, channels, samples]")
        if latents is not None and (latents.dtype != np.float32 or latents.ndim < 2 or not min(latents.shape[1:])):
            raise ValueError(f"latents is {latents.dtype} {list(latents.shape)}; it must be float32 [n, *latent_shape]")
        if pictures is not None and sound is not None and len(pictures) != len(sound):
            raise ValueError(f"{len(pictures)} clips came with {len(sound)} sounds")
        if latents is not None and len(latents) != len(self):
            raise ValueError(f"{len(self)} leaves came with {len(latents)} latents")
        for name, rate in (("frame_rate", self.frame_rate), ("sample_rate", self.sample_rate)):
            if not 0 < rate < math.inf:
                raise ValueError(f"{name} is {rate}; it must be more than 0")

    @property
    def kind(self) -> Kind:
        """What each leaf is."""
        if self.pictures is None:
            return "latent" if self.sound is None else "sound"
        if self.sound is None:
            return "picture" if self.pictures.ndim == 4 else "clip"
        return "clip with sound"

    def __len__(self) -> int:
        return len(next(iter(self.arrays().values())))

    def __getitem__(self, chosen: slice | npt.NDArray[np.int64]) -> Media:
        """Some of the leaves."""
        return self._of({name: array[chosen] for name, array in self.arrays().items()})

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
        width, 3]. Raises ValueError for latents alone."""
        if self.pictures is not None:
            return self.pictures
        from .spectrogram import spectrogram

        return np.stack([spectrogram(own, self.sample_rate) for own in self.waveforms.mean(axis=1)])

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for files and score requests; with `facts`, all that `from_arrays` needs."""
        named = {PICTURES: self.pictures, SOUND: self.sound, LATENTS: self.latents}
        return {name: array for name, array in named.items() if array is not None}

    def read(self, reads: Reads) -> Media:
        """What a reward gets that reads media, or latents. Raises InputError if the leaves haven't come with it."""
        if reads == "latents" and self.latents is None:
            raise InputError(f"a reward of latents was given a {self.kind} without its latents")
        if reads == "media" and self.kind == "latent":
            raise InputError("a reward of media was given latents alone")
        wanted = (LATENTS,) if reads == "latents" else (PICTURES, SOUND)
        return self._of({name: array for name, array in self.arrays().items() if name in wanted})

    def with_latents(self, latents: Latents) -> Media:
        """The leaves with the latents that they were decoded from."""
        return self._of({**self.arrays(), LATENTS: latents})

    def _of(self, arrays: Mapping[str, np.ndarray]) -> Media:
        return self.from_arrays(arrays, self.facts())

    def facts(self) -> dict[str, str]:
        """The rates as texts, where there is something that has them."""
        clip = {"frame_rate": str(self.frame_rate)} if self.kind.startswith("clip") else {}
        return clip | ({"sample_rate": str(self.sample_rate)} if self.sound is not None else {})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> Media:
        """What `arrays` and `facts` were made of; other names in either are passed over. Raises ValueError as the
        class does, and for rates that aren't numbers."""
        rates = float(facts.get("frame_rate", FRAME_RATE)), int(facts.get("sample_rate", SAMPLE_RATE))
        return cls(arrays.get(PICTURES), arrays.get(SOUND), *rates, arrays.get(LATENTS))


def joined(parts: Sequence[Media]) -> Media:
    """All leaves of `parts`, in their order. Raises ValueError if they are not alike."""
    first = parts[0]
    if odd := [part for part in parts if _form(part) != _form(first)]:
        raise ValueError(f"a {first.kind} {first.facts()} and a {odd[0].kind} {odd[0].facts()} are not alike")
    each = [part.arrays() for part in parts]
    arrays = {name: np.concatenate([own[name] for own in each]) for name in each[0]}
    return Media.from_arrays(arrays, first.facts())


def _form(media: Media) -> tuple[object, ...]:
    return media.kind, media.facts(), list(media.arrays())


def some_frames(look: Pictures, count: int) -> Pictures:
    """A picture as one frame, or up to `count` frames of a clip at equal distances from the first to the last, uint8
    [frames, height, width, 3]."""
    if look.ndim == 3:
        return look[None]
    return look[np.linspace(0, len(look) - 1, min(count, len(look))).round().astype(int)]
