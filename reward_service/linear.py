"""The head of reward models: a few linear layers."""

from collections.abc import Callable, Mapping

import torch


class LinearHead:
    """Maps features to a number through the layers whose numbers the names of published weights hold, such as
    `layers.2.weight`. Of several numbers the first."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
        between: Callable[[torch.Tensor], torch.Tensor] = lambda features: features,
    ) -> None:
        """`between` is applied between two layers. Raises ValueError for weights without a layer."""
        names = sorted((name.removesuffix("weight") for name in weights if name.endswith("weight")), key=_number)
        if not names:
            raise ValueError("there are no layers")
        pairs = [(weights[f"{name}weight"], weights[f"{name}bias"]) for name in names]
        self._layers = [(weight.float().to(device), bias.float().to(device)) for weight, bias in pairs]
        self._between = between

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """float32 [n] of float32 [n, features]."""
        for number, (weight, bias) in enumerate(self._layers):
            features = (self._between(features) if number else features) @ weight.T + bias
        return features[:, 0]


def _number(layer: str) -> int:
    return int(layer.rstrip(".").rpartition(".")[2])
