"""The head of two reward models: linear layers with nothing between them."""

from collections.abc import Mapping

import torch


class LinearHead:
    """From features to one number, through the layers `layers.0`, `layers.2` ... of the published weights."""

    def __init__(self, weights: Mapping[str, torch.Tensor], device: torch.device) -> None:
        numbers = sorted({int(name.split(".")[1]) for name in weights})
        pairs = [(weights[f"layers.{n}.weight"], weights[f"layers.{n}.bias"]) for n in numbers]
        self._layers = [(weight.float().to(device), bias.float().to(device)) for weight, bias in pairs]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """float32 [n] of float32 [n, features]."""
        for weight, bias in self._layers:
            features = features @ weight.T + bias
        return features.squeeze(-1)
