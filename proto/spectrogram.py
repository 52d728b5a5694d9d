"""Spectrograms: what is seen of a sound where pictures are shown."""

import numpy as np
import numpy.typing as npt
from scipy.signal import ShortTimeFFT

HEIGHT, WIDTH = 128, 256
"""Pixels: frequencies from the lowest (below) to half the sample rate, and times."""
LOWEST_HERTZ = 40.0
"""Hertz of the lowest row. Rows are at equal ratios."""
FLOOR = 80.0
"""Decibels below full scale that are black; full scale is white."""
FREQUENCIES_PER_ROW = 16
"""Frequencies that a row is the loudest of: a high one spans many of the transform's."""
WINDOW_SECONDS = 0.046


def spectrogram(waveform: npt.NDArray[np.float32], sample_rate: int) -> npt.NDArray[np.uint8]:
    """The loudness of a waveform, float32 [samples] from -1 to 1, by frequency and time: uint8 [128, 256, 3], grey.

    Each pixel is the power of the loudest sine among its frequencies, around its time, in decibels.
    """
    size = max(16, round(WINDOW_SECONDS * sample_rate))
    window = np.hanning(size)
    transform = ShortTimeFFT(window, hop=max(1, size // 4), fs=sample_rate, scale_to="magnitude")
    padded = np.pad(waveform.astype(np.float64), (0, max(0, size - len(waveform))))
    power = np.abs(transform.stft(padded, p0=0, p1=1 + (len(padded) - 1) // transform.hop)) ** 2 * 4
    rows = np.geomspace(LOWEST_HERTZ, sample_rate / 2, HEIGHT * FREQUENCIES_PER_ROW)[::-1]
    fine = np.stack([np.interp(rows, transform.f, column) for column in power.T], axis=1)
    by_time = fine.reshape(HEIGHT, FREQUENCIES_PER_ROW, -1).max(axis=1)
    columns = np.linspace(0, by_time.shape[1] - 1, WIDTH)
    decibels = 10 * np.log10(np.maximum(by_time[:, columns.round().astype(int)], 1e-12))
    grey = np.clip(1 + decibels / FLOOR, 0, 1) * 255
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=-1)
