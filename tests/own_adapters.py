"""Adapters as users write them, each with a flaw."""

from typing import Any

import torch
from branchgrpo.proto.errors import Diverged, InputError
from branchgrpo.rollout_workers.policies.flux import FluxPolicy


class Flawed(FluxPolicy):
    def __init__(self, *given: Any, **named: Any) -> None:
        raise OSError("no such model")


class Encodes(FluxPolicy):
    def encode(self, prompt: str) -> Any:
        return undefined  # noqa: F821


class Moves(FluxPolicy):
    def velocity(self, latents: torch.Tensor, *more: Any) -> torch.Tensor:
        return super().velocity(latents[:, :1], *more)


class Decodes(FluxPolicy):
    def decode(self, latents: torch.Tensor) -> Any:
        raise type("Odd", (Exception,), {"__reduce__": lambda self: (open, ("nowhere",))})("can't travel")


class Shapes(FluxPolicy):
    @property
    def latent_shape(self) -> Any:
        return self.no_shape


class Refuses(FluxPolicy):
    def encode(self, prompt: str) -> Any:
        raise InputError("wants English")

    def decode(self, latents: torch.Tensor) -> Any:
        raise Diverged("not finite")


class Flat(FluxPolicy):
    def decode(self, latents: torch.Tensor) -> Any:
        return super().decode(latents)[..., 0]


class FailsOnRankOne(FluxPolicy):
    def decode(self, latents: torch.Tensor) -> Any:
        if torch.distributed.get_rank() == 1:
            raise Diverged("rank 1 has drawn what isn't finite")
        return super().decode(latents)
