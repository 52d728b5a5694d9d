"""Rewards that torch computes, for processes that import this file by its name."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


def evenness(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> npt.NDArray[np.float64]:
    """How little neighbouring pixels of pictures differ."""
    pixels = torch.from_numpy(media).float().mean(dim=-1).unsqueeze(1) / 255
    edges = torch.nn.functional.conv2d(pixels, torch.tensor([[[[1.0, -1.0]]]]))
    return -edges.abs().mean(dim=(1, 2, 3)).double().numpy()
