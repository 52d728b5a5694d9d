"""An exponential moving average of the trained weights, in float32."""

from collections.abc import Mapping

import torch


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, from the initial weights on."""

    def __init__(self, decay: float, weights: Mapping[str, torch.Tensor]) -> None:
        self.decay = decay
        self.weights = {name: value.detach().float().clone() for name, value in weights.items()}

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take up an average that was kept before."""
        for name, average in self.weights.items():
            average.copy_(weights[name])

    @torch.no_grad()
    def update(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, average in self.weights.items():
            average.lerp_(weights[name].float().to(average.device), 1 - self.decay)
