"""What has sound as WebM, for those who listen: in samples, web pages and evaluations."""

import io
import math
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from .media import Media

OPUS_RATE = 48_000
"""Samples per second: Opus takes a few rates only."""
SOUND_BITS = (12_000, 96_000)
"""Minimum and maximum bits per second of the sound: with fewer, music isn't recognised."""
SPEED = {"deadline": "realtime", "cpu-used": "8"}


def webm(leaf: Media, side: float = math.inf, quality: int = 30, max_bytes: float = math.inf) -> bytes:
    """A leaf with sound, media of one: its frames, if it has any, as VP9, and its first two channels as Opus.

    The longer side gets at most `side` pixels, and both are even. A lower `quality`, from 0 to 63, loses less. More is
    lost where the file would exceed about `max_bytes`, half of which are for the frames. Raises ValueError for a silent
    leaf.
    """
    sound = leaf.waveforms[0, :2]
    bits = 8 * max_bytes / (sound.shape[1] / leaf.sample_rate) / (1 if leaf.pictures is None else 2)
    with io.BytesIO() as file:
        # Else the file has a random number, and a tree that is sampled again another one.
        with av.open(file, "w", format="webm", options={"fflags": "+bitexact"}) as container:
            frames = [] if leaf.pictures is None else _sized(leaf.pictures[0], side)
            video = None
            if frames:
                rate = Fraction(leaf.frame_rate).limit_denominator(1001)
                video = container.add_stream("libvpx-vp9", rate, options={"crf": str(quality), **SPEED})
                video.bit_rate = int(bits) if math.isfinite(bits) else 0
                video.width, video.height, video.pix_fmt = *frames[0].size, "yuv420p"
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream("libopus", OPUS_RATE, layout=layout, options={"vbr": "constrained"})
            audio.bit_rate = int(np.clip(bits, *SOUND_BITS))
            if video:
                for frame in frames:
                    container.mux(video.encode(av.VideoFrame.from_image(frame)))
                container.mux(video.encode())
            for part in _resampled(sound, leaf.sample_rate, layout):
                container.mux(audio.encode(part))
            container.mux(audio.encode())
        return file.getvalue()


def _sized(frames: np.ndarray, side: float) -> list[Image.Image]:
    height, width = frames.shape[1:3]
    shrunk = min(1.0, side / max(height, width))
    size = tuple(max(2, 2 * round(length * shrunk / 2)) for length in (width, height))
    return [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames]


def _resampled(sound: np.ndarray, sample_rate: int, layout: str) -> list[av.AudioFrame]:
    whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
    whole.sample_rate = sample_rate
    resampler = av.AudioResampler(format="flt", layout=layout, rate=OPUS_RATE)
    return [*resampler.resample(whole), *resampler.resample(None)]
