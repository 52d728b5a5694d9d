"""An exponential moving average of the trained weights, in float32."""

from collections.abc import Iterable, Mapping

import torch


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, from the initial weights on.

    It lies in the host's memory, and takes the weights one by one: they needn't be on the device all at once.
    """

    def __init__(self, decay: float, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.decay = decay
        self.weights = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in weights}

    def load(self, weights: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> None:
        """Continue an average that was kept before, or start one with these weights."""
        for name, value in weights.items() if isinstance(weights, Mapping) else weights:
            self.weights[name].copy_(value)

    @torch.no_grad()
    def update(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Move the average towards the present weights."""
        for name, value in weights:
            self.weights[name].lerp_(value.to("cpu", torch.float32), 1 - self.decay)
