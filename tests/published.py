"""Small random weights in the layouts in which reward models are published, the same wherever they are made."""

import numpy as np
import torch

PROMPTS = ("123", "a b", "9", "xyz 0")


def weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Random weights of these names and shapes, float32."""
    made = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        values = np.random.Generator(np.random.Philox(number)).standard_normal(shape, dtype=np.float32)
        norm = "ln_" in name or "norm" in name.lower()
        made[name] = torch.from_numpy(np.asarray(values * 0.1 + (norm and name.endswith("weight")), dtype=np.float32))
    return made


def pictures(height: int, width: int) -> np.ndarray:
    """Four smooth pictures, uint8 [4, height, width, 3]."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin((n + 1) * (3 * x + k) + (4 - n) * (2 * y - k)) for n in range(4) for k in range(3)]
    return ((np.array(waves).reshape(4, 3, height, width).transpose(0, 2, 3, 1) + 1) * 127.5).round().astype(np.uint8)


def tokens(length: int, first: int, last: int, padding: int) -> torch.Tensor:
    """Four texts: ids between a first and a last one, padded."""
    texts = [[first, *range(5, 7 + n), last] for n in range(4)]
    return torch.tensor([text + [padding] * (length - len(text)) for text in texts])
