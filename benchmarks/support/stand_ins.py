"""Policies and reward models that sleep instead of computing: what is measured is the way work is scheduled.

Named in a recipe: `policy.adapter: branchgrpo.benchmarks.support.stand_ins:SleepingPolicy`, and
`rewards.constant.scorer: branchgrpo.benchmarks.support.stand_ins:sleeping_scorer`.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ...proto.tree import Conditioning
from ...rollout_workers.policies.base import Network
from ...rollout_workers.policies.flux import FluxPolicy

Scores = dict[str, npt.NDArray[np.float64]]
Score = Callable[[npt.NDArray[np.uint8], Sequence[str]], Scores]
Load = Callable[[int | None], Score]
"""A `scorer` of a recipe: called with a number of threads."""
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


def _loads(
    reward: str, values: Callable[[int], Iterable[float]], seconds: float = 0.0, per_picture: float = 0.0
) -> Load:
    """What loads a scorer of one reward, which sleeps for `seconds` and for each picture."""

    def score(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> Scores:
        time.sleep(seconds + per_picture * len(media))
        return {reward: np.fromiter(values(len(media)), float)}

    return lambda threads: score


def _alike(count: int) -> list[float]:
    """Equal scores for all leaves, so that no edge has an advantage and the learner has nothing to do."""
    return [0.5] * count


counting_scorer = _loads("counting", lambda count: (i / count for i in range(count)))
"""Scores that differ, so that every edge has an advantage."""
picture_scorer = _loads("constant", _alike, per_picture=PICTURE_SECONDS)
another_scorer = _loads("another", _alike)
instant_scorer = _loads("constant", _alike)
sleeping_scorer = _loads("constant", _alike, seconds=0.05)
slow_scorer = _loads("constant", _alike, seconds=1.0)
