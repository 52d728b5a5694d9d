"""The interface of a training loop, on Ray or in one process, and its reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...proto.update_stats import UpdateStats
from ...proto.usage import Usage
from .evaluation import Evaluation
from .samples import TreeSamples
from .tree_record import TreeRecord

Progress = Callable[[str, float], None]
"""Called with the phase of an iteration and the fraction of it that is done, 0 to 1."""


@dataclass
class IterationReport:
    """The results of one iteration."""

    iteration: int
    rewards: dict[str, npt.NDArray[np.float64]]
    """Scores of all leaves by reward, float64 [trees * leaves]."""
    seconds: dict[str, float]
    """Phase -> its seconds: rollout, scoring, waiting, learning, publishing. On Ray they overlap."""
    forward_passes: int
    updates: list[UpdateStats]
    diversity: float | None
    """Diversity of the leaves of a tree (`rollout_workers/diversity.py`), mean over the trees that were decoded; None
    where none was."""
    usage: dict[str, Usage] = field(default_factory=dict)
    """Phase -> what all processes have spent on it; on Ray also that of `controller` and `driver`."""
    flops: dict[str, float] = field(default_factory=dict)
    """Phase -> its floating-point operations; without phases that can't be counted."""
    utilisation: dict[str, float] = field(default_factory=dict)
    """Phase -> these as a share of its devices' peak, while it was at work; without devices that aren't known."""
    reward_usage: dict[str, Usage] = field(default_factory=dict)
    """Reward model -> what its replicas have spent; empty in one process."""
    reward_flops: dict[str, float] = field(default_factory=dict)
    """Reward model -> its floating-point operations; without models that can't be counted."""
    reward_utilisation: dict[str, float] = field(default_factory=dict)
    """Reward model -> these as a share of its devices' peak, as of a phase."""
    scoring_hidden: float = 0.0
    """Share of the scoring time during which trees were being sampled."""
    learner_draining: bool = False
    """Whether a learner rank's node is about to be taken away, so that the rank must restart elsewhere."""
    samples: list[TreeSamples] = field(default_factory=list)
    """Leaves of its first trees, if they are to be kept."""
    trees: list[TreeRecord] = field(default_factory=list)
    """Recorded trees of the iteration."""
    left_out: int = 0
    """Number of trees that were skipped because a reward failed."""


class Loop(Protocol):
    """The iterations of a run over its prompts, which the loop is given once, and what the run needs beside them."""

    def iterate(self, number: int, progress: Progress = lambda phase, share: None) -> IterationReport:
        """Make an iteration. The first is 1; the others follow in order."""

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts among `prompts` that the policy cuts because they are too long."""

    def evaluate(self, prompts: Sequence[str]) -> Evaluation:
        """Deterministic samples with the newest weights, scored."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint, as a whole folder."""

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""

    def export(self, folder: Path) -> None:
        """Write the trained weights in diffusers' format."""

    def restart(self, *, lost: bool = True) -> None:
        """Restart everything, after a loss or, if nothing was `lost`, to go back. The caller then calls `load`."""

    def close(self) -> None:
        """Release everything that the loop holds. No other call may follow."""
