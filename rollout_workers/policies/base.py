"""The interface of a policy. Nothing in this folder knows of Ray, DeepSpeed or run folders."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from ...proto.errors import InputError
from ...proto.settings import LoraSettings
from ...proto.tree import Conditioning
from .decoded import Decoded

Network = Callable[..., tuple[torch.Tensor]]
Weights = Iterable[tuple[str, Callable[[], torch.Tensor]]]
"""Names of weights, and what reads each from disk. One is read before the next name is asked for, or not at all."""
Builder = Callable[[Callable[[], torch.nn.Module], Weights], torch.nn.Module]
"""Makes a network, and loads its weights, in another way than whole into this process."""


class Policy(Protocol):
    """A diffusers pipeline seen as a policy: one thin adapter per model family."""

    network: torch.nn.Module
    """The denoising network, the part that is trained."""

    @property
    def device(self) -> torch.device:
        """The device of the network."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one state, without a batch dimension."""

    def sigmas(self, steps: int) -> list[float]:
        """Noise levels of a sampling run, steps + 1 numbers that fall from 1 to 0 (or nearly so)."""

    @property
    def encoding(self) -> str:
        """Names what `encode` depends on beside the prompt and its pictures; a file name."""

    def encode(self, prompt: str) -> Conditioning:
        """The network's conditioning on a prompt and its pictures. Moves text encoders to the device."""

    def release_encoders(self) -> None:
        """Take text encoders from the device: no prompt is to be encoded in a while."""

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        """Predicted velocity eps - x0, [rows, *latent_shape].

        `latents` [rows, *latent_shape] in any dtype, `sigma` float32 [rows], `conditioning` with a row dimension
        (`collate`). `network` takes the place of the policy's own (an engine wrapped around it, say).
        """

    def decode(self, latents: torch.Tensor) -> torch.Tensor | Decoded:
        """Pictures in [0, 1], float32 [rows, height, width, 3], or clips [rows, frames, height, width, 3]; whatever has
        a sound, or another frame rate than 16 per second, as `Decoded`."""

    def checkpoint_gradients(self) -> None:
        """Have the network recompute activations in the backward pass."""

    def add_lora(self, settings: LoraSettings) -> None:
        """Freeze the network and give it adapters, drawn from torch's global generator."""

    def save(self, folder: Path) -> Path:
        """Write what was trained in diffusers' own format and return where: network folder or LoRA file, or, of a
        model with two networks, the folder that holds those of both."""


def cut_prompts(policy: Policy, prompts: Sequence[str]) -> list[str]:
    """The prompts of which a policy encodes only the beginning, as far as it can say."""
    cut: Callable[[Sequence[str]], list[str]] = getattr(policy, "cut_prompts", lambda prompts: [])
    return cut(prompts)


def with_guidance(policy: Policy, scale: float) -> Policy:
    """A policy of the same models with another guidance scale. Raises InputError if it can't have one."""
    if not (changed := getattr(policy, "with_guidance", None)):
        raise InputError(
            f"evaluation.guidance_scale is {scale}, and the policy's adapter {type(policy).__name__} has no "
            "with_guidance; leave it null"
        )
    own: Policy = changed(scale)
    return own


def collate(conditionings: Sequence[Conditioning], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Conditionings of several prompts as one, with a leading row dimension, on a device if one is given."""
    return {name: torch.stack([c[name] for c in conditionings]).to(device) for name in conditionings[0]}


def trainable(network: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name: all of them, or the adapters'."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


@contextmanager
def without_adapters(network: torch.nn.Module) -> Iterator[None]:
    """The network as if it had no adapters, meanwhile."""
    network.disable_adapters()  # type: ignore[operator]  # of diffusers' PeftAdapterMixin
    try:
        yield
    finally:
        network.enable_adapters()  # type: ignore[operator]


def add_adapters(policy: Policy, settings: LoraSettings, seed: int) -> None:
    """Give `policy` its adapters, the same wherever it is done; torch's global generator stays as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy.add_lora(settings)


@torch.no_grad()
def load_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy `weights` into the trained parameters. Raises ValueError unless the names are exactly theirs."""
    parameters = trainable(network)
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())
        raise ValueError(f"weights don't fit the network: {len(odd)} names differ, such as '{odd[0]}'")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
