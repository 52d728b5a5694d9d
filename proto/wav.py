"""Sounds as WAV files of 16 bits, which everything plays."""

import io
import wave
from typing import BinaryIO

import numpy as np

from .media import Media, Sound


def wav(sound: Sound, sample_rate: int) -> bytes:
    """A sound, int16 [channels, samples], as the bytes of a file."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as written:
            written.setnchannels(len(sound))
            written.setsampwidth(2)
            written.setframerate(sample_rate)
            written.writeframes(sound.T.astype("<i2").tobytes())
        return file.getvalue()


def is_wav(file: BinaryIO) -> bool:
    """Whether a file begins as a WAV file does."""
    start = file.read(4)
    file.seek(0)
    return start == b"RIFF"


def read_wav(file: BinaryIO) -> Media:
    """The sound in a file. Raises ValueError, EOFError and wave.Error for what is no WAV of 16 bits, or isn't whole."""
    with wave.open(file, "rb") as read:
        if read.getsampwidth() != 2:
            raise ValueError(f"it has {8 * read.getsampwidth()} bits")
        channels, rate, count = read.getnchannels(), read.getframerate(), read.getnframes()
        samples = np.frombuffer(read.readframes(count), "<i2")
    if len(samples) != channels * count:
        raise ValueError(f"it is truncated: {len(samples)} samples of {channels * count}")
    return Media(sound=samples.astype(np.int16).reshape(1, count, channels).swapaxes(1, 2), sample_rate=rate)
