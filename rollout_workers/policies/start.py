"""Weights to start training from in place of the published ones: `policy.start_from`.

A start changes what a network is published with, weight by weight: a network that was trained before replaces its
weights, a LoRA adds to them. A LoRA that is to be trained further changes nothing, and becomes the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ...proto.errors import InputError
from .folder import opened

LORA_STEM = "pytorch_lora_weights"
"""The beginning of the names of LoRA files, diffusers' own."""
ADAPTER = "default"

Adapted = Mapping[str, torch.nn.Module]
"""Network -> itself without numbers, but with a LoRA's."""


class Start:
    """Weights to start from, by network and name."""

    def __init__(self) -> None:
        self._stored: dict[str, dict[str, tuple[Path, str]]] = {}
        """Network -> name -> file and name in it, of weights that replace the published ones."""
        self._added: list[dict[str, dict[str, BaseTunerLayer]]] = []
        """Network -> name -> layer with what is added to it, of each LoRA that is merged."""
        self.adapters: Adapted | None = None
        """The LoRA that is trained further."""

    def replace(self, network: str, stored: Mapping[str, tuple[Path, str]]) -> None:
        """Start a network from stored weights: name -> file, and name in it."""
        self._stored[network] = dict(stored)

    def merge(self, adapted: Adapted) -> None:
        """Add a LoRA to the weights."""
        self._added.append({network: dict(adapted_layers(module)) for network, module in adapted.items()})

    def changed(self, network: str) -> set[str]:
        """Names of the network's weights that are not the published ones."""
        return {*self._stored.get(network, ()), *(name for lora in self._added for name in lora.get(network, ()))}

    @property
    def changes_any(self) -> bool:
        """Whether any weight isn't the published one."""
        return bool(self._stored or self._added)

    def weight(self, network: str, name: str, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A weight to start from; `read` gives the published one."""
        if place := self._stored.get(network, {}).get(name):
            with opened(place[0], "pt") as stored:
                weight: torch.Tensor = stored.get_tensor(place[1])
        else:
            weight = read()
        for lora in self._added:
            if layer := lora.get(network, {}).get(name):
                weight = weight.float() + delta(layer)
        return weight


@torch.no_grad()
def delta(layer: BaseTunerLayer) -> torch.Tensor:
    """The difference that the adapter of a layer adds to its weight, float32 on the CPU."""
    weight = layer.get_base_layer().weight
    if weight.ndim > 2:  # of PEFT's a kernel of one frame and pixel would have the wrong shape
        up, down = (own[ADAPTER].weight.float().flatten(1) for own in (layer.lora_B, layer.lora_A))
        return (layer.scaling[ADAPTER] * up @ down).reshape(weight.shape).cpu()
    change: torch.Tensor = layer.get_delta_weight(ADAPTER)
    return change.to("cpu", torch.float32)


def adapted_layers(network: torch.nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Weights that an adapter adds to, by the names that they have without adapters, and their layers."""
    for name, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield f"{name}.weight", module


def lora_of(adapted: torch.nn.Module) -> tuple[int, float, list[str]]:
    """Rank and alpha of a LoRA, and its layers. Raises InputError if they differ from layer to layer."""
    layers = {name.removesuffix(".weight"): layer for name, layer in adapted_layers(adapted)}
    pairs = {(layer.r[ADAPTER], layer.scaling[ADAPTER] * layer.r[ADAPTER]) for layer in layers.values()}
    if len(pairs) > 1:
        raise InputError(f"its layers have ranks and alphas {sorted(pairs)}: it can only be merged (lora: merge)")
    ((rank, alpha),) = pairs
    return rank, alpha, sorted(layers)


def lora_files(networks: int) -> tuple[str, ...]:
    """Names of the LoRA files of a model: diffusers' own, or by the noise levels of Wan 2.2's two networks."""
    ends = ("",) if networks == 1 else ("_high_noise", "_low_noise")
    return tuple(f"{LORA_STEM}{end}.safetensors" for end in ends)
