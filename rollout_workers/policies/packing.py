"""Latents of pictures packed into tokens, as networks of Flux and of Qwen-Image read them."""

import torch
import torch.nn.functional as F

PATCH = 2
"""Latents along the side of a token."""


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Latents [rows, channels, height, width] as tokens [rows, height / 2 * width / 2, 4 * channels]."""
    return F.pixel_unshuffle(latents, PATCH).flatten(2).mT.contiguous()


def unpacked(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The latents [rows, channels, height, width] that were packed into `tokens`."""
    return F.pixel_shuffle(tokens.mT.unflatten(2, (height // PATCH, width // PATCH)), PATCH)


def token_places(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Coordinates [tokens, 3] of the tokens of latents of this height and width: 0, row, column."""
    sides = [torch.arange(size, device=device) for size in (1, height // PATCH, width // PATCH)]
    return torch.cartesian_prod(*sides).to(dtype)
