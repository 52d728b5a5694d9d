"""Runs whose leaves sound, and what is heard of leaves that play, beside what they are."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from branchgrpo.proto.media import Media
from diffusers import DiffusionPipeline
from families import FAMILIES, saved
from scipy.signal import resample

LOWEST_HERTZ = 20
"""Below it Opus keeps nothing."""


SOUNDING = {"Stable Audio": "sound", "LTX-2": "clip with sound"}
"""Family -> what its leaves are."""


def sounding(family: str, folder: Path) -> dict[str, Any]:
    """What a run changes whose leaves sound, by a family that is saved in `folder`."""
    own = FAMILIES[family]
    pipeline = DiffusionPipeline.from_pretrained(saved(family, folder))
    if "vocoder" in pipeline.components:
        make_loud(pipeline.vocoder)
        pipeline.vocoder.save_pretrained(folder / "vocoder")
    loud, shade = ({"function": f"support:{name}"} for name in ("loudness", "shade"))
    return {
        "policy.pretrained": str(folder),
        "policy.height": own.size[0],
        "policy.width": own.size[1],
        "policy.frames": own.frames,
        "policy.seconds": own.seconds,
        "policy.max_sequence_length": own.tokens,
        "rewards": {"loud": loud, "shade": shade} if own.frames > 1 else {"loud": loud},
    }


def make_loud(vocoder: torch.nn.Module) -> None:
    """Have small leaves of LTX-2 heard, which would hardly differ either."""
    torch.manual_seed(0)
    for weights in vocoder.parameters():
        torch.nn.init.normal_(weights, std=0.2 if weights.ndim > 1 else 0)


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
