"""The interface of a training loop, on Ray or in one process, and its reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...proto.update_stats import UpdateStats
from .evaluation import Evaluation

Progress = Callable[[str, float], None]
"""Is told the phase of an iteration and how much of it is done, 0 to 1."""

SHOWN_TREES = 4
"""Trees of an iteration whose leaves can be looked at."""


@dataclass
class IterationReport:
    """What one iteration did."""

    iteration: int
    rewards: dict[str, npt.NDArray[np.float64]]
    """Scores of all leaves by reward, float64 [trees * leaves]."""
    seconds: dict[str, float]
    """By phase: rollout, scoring, waiting, learning, publishing. On Ray they overlap."""
    forward_passes: int
    updates: list[UpdateStats]
    media: list[npt.NDArray[np.uint8]]
    """Leaves of the first trees, each uint8 [leaves, height, width, 3]."""
    diversity: float
    """Of the leaves of a tree (`rollout_workers/diversity.py`), mean over trees."""
    scoring_hidden: float = 0.0
    """Share of the scoring time during which trees were being sampled."""
    learner_draining: bool = False
    """Whether a learner rank's node is about to go, so that it must be set up elsewhere."""
    left_out: int = 0
    """Trees that got no score, of which nothing is learned."""
    first_score: float = 1.0
    """Share of the iteration's forward passes that were done when the first leaf was scored."""


class Loop(Protocol):
    """The iterations of a run over its prompts, which the loop is given once, and what the run needs beside them."""

    def iterate(self, number: int, progress: Progress = lambda phase, share: None) -> IterationReport:
        """Make an iteration. The first is 1; the others follow in order."""

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Those of `prompts` of which the policy takes the beginning only."""

    def evaluate(self, prompts: Sequence[str]) -> Evaluation:
        """Deterministic samples with the newest weights, scored."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint, as a whole folder."""

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""

    def export(self, folder: Path) -> None:
        """Write what was trained in diffusers' format."""

    def restart(self) -> None:
        """Set up everything anew, after something of it was lost; then `load`."""

    def close(self) -> None:
        """Give back whatever the loop holds. No other call may follow."""
