"""What is heard of leaves that play, beside what they are."""

import io

import av
import numpy as np
from branchgrpo.proto.media import Media
from scipy.signal import resample

LOWEST_HERTZ = 20
"""Below it Opus keeps nothing."""


def heard(data: bytes) -> np.ndarray:
    """The sound in a WebM, float32 [channels, samples at 48 kHz]."""
    with av.open(io.BytesIO(data)) as file:
        return np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)


def likeness(data: bytes, leaves: Media) -> np.ndarray:
    """Correlation of the sound in a WebM with that of each leaf, from -1 to 1, float64 [n]."""
    waveforms = leaves.waveforms
    played = _audible(resample(heard(data), waveforms.shape[-1], axis=1), leaves.sample_rate)
    return np.array([np.corrcoef(played, _audible(one, leaves.sample_rate))[0, 1] for one in waveforms])


def _audible(waveform: np.ndarray, rate: int) -> np.ndarray:
    hertz = np.fft.rfftfreq(waveform.shape[-1], 1 / rate)
    return np.fft.irfft(np.where(hertz < LOWEST_HERTZ, 0, np.fft.rfft(waveform)), waveform.shape[-1]).ravel()
