"""Pictures made ready for reward models, on the device where the model is."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate, pad

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on, by channel; most reward models stem from it."""
Fit = Callable[[torch.Tensor, int], torch.Tensor]
"""From pictures, float32 [n, 3, height, width] in [0, 255], to squares of the side asked for."""


def prepared(pictures: npt.NDArray[np.uint8], size: int, fit: Fit, device: torch.device) -> torch.Tensor:
    """Squares of `size` normalised as CLIP has it, float32 [n, 3, size, size] on `device`.

    `pictures` is uint8 [n, height, width, 3]; bytes are what goes to the device.
    """
    given = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values, device=device).reshape(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (fit(given, size) / 255 - mean) / std


def cropped(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """The shorter side resized to `size`, rounded to whole values as Pillow does, and the middle of the longer."""
    height, width = pictures.shape[-2:]
    short = min(height, width)
    if short != size:
        rows, columns = int(size * height / short), int(size * width / short)
        for target in ([height, columns], [rows, columns]):  # Pillow rounds after each of two passes
            pictures = interpolate(pictures, target, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (round((side - size) / 2) for side in pictures.shape[-2:])
    return pictures[..., top : top + size, left : left + size]


def padded(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """The longer side resized to `size`, and black on both sides of the shorter."""
    height, width = pictures.shape[-2:]
    if (long := max(height, width)) == size == min(height, width):
        return pictures
    target = [round(side * size / long) for side in (height, width)]
    pictures = interpolate(pictures, target, mode="bicubic", antialias=True)
    top, left = ((size - side) // 2 for side in target)
    return pad(pictures, (left, size - target[1] - left, top, size - target[0] - top))
