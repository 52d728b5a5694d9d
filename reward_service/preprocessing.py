"""Preparing pictures for reward models, on the model's device, exactly as the models' packages do it."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation, per channel, of the pictures that CLIP was trained on. Most reward models use them."""
Fit = Callable[[torch.Tensor, int], torch.Tensor]
"""Turns a picture, float64 [3, height, width] in [0, 255], into a square of the side asked for."""
BITS = 22
"""Fraction bits of Pillow's resampling weights, which are integers."""


def prepared(pictures: npt.NDArray[np.uint8], size: int, fit: Fit, device: torch.device) -> torch.Tensor:
    """Squares of `size` normalised as CLIP has it, float32 [n, 3, size, size] on `device`.

    `pictures` is uint8 [n, height, width, 3]; bytes are what goes to the device.
    """
    given = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values, device=device).reshape(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    squares = torch.stack([fit(picture.double(), size).float() for picture in given])
    return (squares / 255 - mean) / std


def cropped(picture: torch.Tensor, size: int) -> torch.Tensor:
    """The shorter side resized to `size` as Pillow does, and the middle of the longer, as transformers takes it."""
    return _middle(picture, size, lambda surplus: surplus // 2)


def cropped_by_torchvision(picture: torch.Tensor, size: int) -> torch.Tensor:
    """Like `cropped`, with torchvision's middle: half of an odd surplus is rounded to the even number."""
    return _middle(picture, size, lambda surplus: round(surplus / 2))


def padded(picture: torch.Tensor, size: int) -> torch.Tensor:
    """The longer side resized to `size`, and black on both sides of the shorter."""
    height, width = picture.shape[-2:]
    scale = size / max(height, width)  # first, as the hpsv2 package has it: size * side / long rounds otherwise
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    resized = _weights(height, rows).to(picture) @ picture @ _weights(width, columns).to(picture).T
    top, left = (size - rows) // 2, (size - columns) // 2
    return pad(resized, (left, size - columns - left, top, size - rows - top))


def _middle(picture: torch.Tensor, size: int, before: Callable[[int], int]) -> torch.Tensor:
    """The shorter side resized to `size`; `before` says how much of a surplus of the longer lies before its middle."""
    height, width = picture.shape[-2:]
    rows, columns = (int(size * side / min(height, width)) for side in (height, width))
    # Pillow rounds after each of two passes. (From version 13 on it takes rows first where that is less work.)
    picture = _rounded(picture @ _whole(_weights(width, columns)).to(picture).T)
    picture = _rounded(_whole(_weights(height, rows)).to(picture) @ picture)
    top, left = before(rows - size), before(columns - size)
    return picture[..., top : top + size, left : left + size]


@lru_cache(maxsize=32)
def _weights(given: int, wanted: int) -> torch.Tensor:
    """The weights of Pillow's bicubic resize of a side, float64 [wanted, given]."""
    scale = given / wanted
    stretch = max(scale, 1.0)
    centre = (np.arange(wanted)[:, None] + 0.5) * scale
    place = np.arange(given)
    distance = np.abs(place - centre + 0.5) / stretch
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    first, end = (np.trunc(centre + sign * 2 * stretch + 0.5) for sign in (-1, 1))
    weights[(place < first) | (place >= end)] = 0
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))


def _whole(weights: torch.Tensor) -> torch.Tensor:
    """The weights as integers, so that float64 holds every sum exactly."""
    return torch.trunc(weights * 2**BITS + torch.copysign(torch.tensor(0.5), weights))


def _rounded(sums: torch.Tensor) -> torch.Tensor:
    """Values of pixels, of sums with whole weights."""
    return torch.floor(sums / 2**BITS + 0.5).clamp(0, 255)
