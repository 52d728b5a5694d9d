"""Policies and reward models that sleep instead of computing: what is measured is the way work is scheduled.

Named in a recipe: `policy.adapter: branchgrpo.benchmarks.support.stand_ins:SleepingPolicy`, and
`rewards.constant.scorer: branchgrpo.benchmarks.support.stand_ins:sleeping_scorer`.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from ...proto.tree import Conditioning
from ...rollout_workers.policies.base import Network
from ...rollout_workers.policies.flux import FluxPolicy

Scores = dict[str, npt.NDArray[np.float64]]
Score = Callable[[npt.NDArray[np.uint8], Sequence[str]], Scores]
PICTURE_SECONDS = 0.04
"""Seconds that `picture_scorer` sleeps per picture."""


class InstantPolicy(FluxPolicy):
    """Rollouts cost next to nothing, and draw nothing but grey."""

    forward_seconds = 0.0
    """Seconds of one forward pass of a rollout."""

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        if network is not None:  # the learner's
            return super().velocity(latents, sigma, conditioning, network)
        time.sleep(self.forward_seconds)
        return -latents.float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.full((len(latents), self.settings.height, self.settings.width, 3), 0.5)


class SleepingPolicy(InstantPolicy):
    """A forward pass takes a twentieth of a second, and no core."""

    forward_seconds = 0.05


class RowPolicy(InstantPolicy):
    """A forward pass takes time for itself and for each of its rows; the learner's, with the backward pass, too."""

    forward_seconds = 0.05
    row_seconds = 0.02
    learner_row_seconds = 0.02

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        if network is None:
            time.sleep(self.forward_seconds + self.row_seconds * len(latents))
            return -latents.float()
        time.sleep(self.learner_row_seconds * len(latents))
        # Every parameter has a gradient, which is zero.
        return 0 * torch.stack([p.sum() for p in self.network.parameters() if p.requires_grad]).sum() - latents.float()


def _constant(
    media: npt.NDArray[np.uint8], prompts: Sequence[str], seconds: float
) -> dict[str, npt.NDArray[np.float64]]:
    """The same score for everything, so that no edge has an advantage and the learner has nothing to do."""
    time.sleep(seconds)
    return {"constant": np.full(len(media), 0.5)}


def counting_scorer(threads: int | None) -> Score:
    """Gives the reward `counting` at once, whose scores differ, so that every edge has an advantage."""
    return lambda media, prompts: {"counting": np.arange(len(media)) / len(media)}


def _by_picture(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> Scores:
    return _constant(media, prompts, PICTURE_SECONDS * len(media))


def picture_scorer(threads: int | None) -> Score:
    """Gives the reward `constant`, after `PICTURE_SECONDS` for every picture."""
    return _by_picture


def another_scorer(threads: int | None) -> Score:
    """Gives the reward `another` at once."""
    return lambda media, prompts: {"another": np.full(len(media), 0.5)}


def instant_scorer(threads: int | None) -> Score:
    """Gives the reward `constant` at once."""
    return partial(_constant, seconds=0.0)


def sleeping_scorer(threads: int | None) -> Score:
    """Gives the reward `constant` after a twentieth of a second."""
    return partial(_constant, seconds=0.05)


def slow_scorer(threads: int | None) -> Score:
    """Gives the reward `constant` after a second."""
    return partial(_constant, seconds=1.0)
