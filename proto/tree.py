"""A sampled tree as arrays over its nodes, and the parts in which it arrives.

Both carry references: the latents of a node are a view into the tensor that the sampler made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from .media import Media
from .schedule import IntArray, Schedule

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Other = TypeVar("Other")
FloatArray = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating]
Conditioning: TypeAlias = "Mapping[str, torch.Tensor]"
"""One prompt's inputs to the denoising network, by the policy's own names, without a batch dimension."""


@dataclass(frozen=True)
class Task:
    """A group of trees for one worker. Its result is a pure function of these fields, on any worker at any time."""

    iteration: int
    trees: tuple[int, ...]
    """Numbers of the trees within the iteration."""
    prompts: tuple[str, ...]
    schedule: Schedule
    seed: int
    weights_version: int = 0
    guidance_scale: float | None = None
    """Guidance scale of these trees; None for the policy's own."""
    start_seed: int | None = None
    """Seed of the roots' noise, where it isn't that of all other noise: trees may share their starts with others."""
    recorded: int = 0
    """Trees with a lower number are recorded: thumbnails of their leaves come with them."""
    sampled: int = 0
    """Trees with a lower number are kept as samples. These have their sound, so their thumbnails have none."""
    previews: bool = False
    """Whether thumbnails of their splits come too."""
    latents: bool = False
    """Whether leaves come with their latents, for rewards that read them."""
    decoded: int | None = None
    """Trees with a lower number are decoded, for somebody looks at them; the others' leaves are latents. None: all."""


@dataclass(frozen=True)
class Window(Generic[Item]):
    """Consecutive trees that the learner works on at once: by number, on their way to it, or whole."""

    iteration: int
    trees: Sequence[Item]
    closes_update: bool
    """Whether the optimizer's step follows."""

    def of(self, tree: Callable[[Item], Other]) -> Window[Other]:
        """A window with what `tree` returns for each of these trees."""
        return Window(self.iteration, [tree(item) for item in self.trees], self.closes_update)


class Thumbnail(NamedTuple):
    """What a recorded tree shows of a node."""

    picture: bytes
    """WebP: of a clip an animation, of a sound its spectrogram."""
    webm: bytes = b""
    """What plays of a leaf with sound; nothing of other nodes."""


@dataclass(frozen=True)
class TreePart:
    """A part of a tree: some leaves, and all nodes above them that were computed since the previous part."""

    tree: int
    nodes: IntArray
    """Numbers of the nodes, ascending, int64 [n]."""
    logprobs: torch.Tensor
    """Log-probability of the edge into each node, averaged over latent dimensions, float32 [n]; 0 if deterministic."""
    latents: Sequence[torch.Tensor]
    """State of each node, n tensors of the policy's latent shape, in the storage dtype."""
    leaves: IntArray
    """Numbers of the finished leaves, int64 [m]; a subset of `nodes`."""
    conditioning: Conditioning | None = None
    """The prompt's conditioning, in the first part of a tree only."""
    diversity: float | None = None
    """Diversity of all the tree's leaves; in its last part only."""
    thumbnails: Mapping[int, Thumbnail] = field(default_factory=dict)
    """Nodes of a tree that is recorded: leaves, and of splits the clean state predicted there."""


@dataclass(frozen=True, kw_only=True)
class SampledPart(TreePart):
    """A part where it is sampled: with its pictures, which the learner doesn't get."""

    media: Media
    """The m finished leaves."""


@dataclass
class Tree:
    """All nodes of one prompt's tree (a forest when the schedule has several roots)."""

    number: int
    prompt: str
    schedule: Schedule
    logprobs: FloatArray = field(default_factory=lambda: np.empty(0))
    """Log-probability of the edge into each node, float64 [nodes]; NaN until it has arrived."""
    rewards: dict[str, FloatArray] = field(default_factory=dict)
    """Scores of the leaves by reward, float64 [leaves]; NaN until they have arrived."""
    conditioning: Conditioning | None = None
    thumbnails: dict[int, Thumbnail] = field(default_factory=dict)
    """Those of its nodes, if the tree is recorded."""
    left_out: bool = False
    """Whether it has no scores and never will have: nothing is learned from it."""
    _parts: list[TreePart] = field(default_factory=list)
    _place: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Part and position within it of each node, int64 [nodes, 2]; -1 until it has arrived."""

    def __post_init__(self) -> None:
        self.logprobs = np.full(self.schedule.nodes, np.nan)
        self._place = np.full((self.schedule.nodes, 2), -1)

    def add(self, part: TreePart) -> None:
        """Take over a finished part, whose states are not touched before they are asked for.

        Raises ValueError if one of its nodes has arrived before.
        """
        if (self._place[part.nodes, 0] >= 0).any():
            raise ValueError(f"tree {self.number} got nodes {part.nodes.min()} to {part.nodes.max()} twice")
        self._place[part.nodes, 0] = len(self._parts)
        self._place[part.nodes, 1] = np.arange(len(part.nodes))
        self._parts.append(part)
        self.logprobs[part.nodes] = part.logprobs.double().cpu().numpy()
        self.thumbnails.update(part.thumbnails)
        if part.conditioning is not None:
            self.conditioning = part.conditioning

    def state(self, node: int) -> torch.Tensor:
        """Latents of a node, [*latent_shape]. Raises ValueError if it hasn't arrived."""
        part, position = self._place[node]
        if part < 0:
            raise ValueError(f"node {node} of tree {self.number} hasn't arrived")
        return self._parts[part].latents[position]

    def add_scores(self, leaves: IntArray, scores: Mapping[str, Scores]) -> None:
        """Take over the scores of some leaves. Raises ValueError for a score that is not finite."""
        fill_scores(self.rewards, self.schedule, leaves, scores, f"tree {self.number} ('{self.prompt}')")

    def scored(self, rewards: Iterable[str]) -> bool:
        """Whether every node has arrived, and every leaf's score by each of `rewards`."""
        nothing = np.array([np.nan])
        arrays = [self.logprobs, *(self.rewards.get(name, nothing) for name in rewards)]
        return not any(np.isnan(array).any() for array in arrays)


def fill_scores(
    rewards: dict[str, FloatArray], schedule: Schedule, leaves: IntArray, scores: Mapping[str, Scores], tree: str
) -> None:
    """Write the scores of some leaves into `rewards`: by reward, float64 [leaves], NaN until they have arrived.

    Raises ValueError for a score that is not finite, in which `tree` is named: none is invented.
    """
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(f"reward '{name}' gave {values} for {tree}")
        column = rewards.setdefault(name, np.full(schedule.leaves, np.nan))
        column[leaves - schedule.first_node[-2]] = values
