"""A finished part of a tree in transit: a small header for the controller, pictures for the rewards, states for the
learner.

The three are separate objects, so that each goes only where it is needed. States are fetched when one of them is asked
for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from .packed_tensor import PackedTensor
from .schedule import IntArray, Schedule
from .tree import FloatArray, Thumbnail, Tree, TreePart
from .usage import NOTHING, Usage

if TYPE_CHECKING:
    import torch

LATENTS = "latents"
States = Mapping[str, PackedTensor]
"""Latents [n, *latent_shape] of a part's nodes, and in a tree's first part its conditioning by name."""
Reference = TypeVar("Reference")


@dataclass(frozen=True)
class PartHeader:
    """The small fields of a `TreePart`."""

    tree: int
    nodes: IntArray
    logprobs: npt.NDArray[np.float32]
    leaves: IntArray
    conditioning: tuple[str, ...]
    """Names of the conditioning tensors that come with the states."""
    diversity: float | None
    """Diversity of all the tree's leaves; in the tree's last part only."""
    thumbnails: Mapping[int, Thumbnail] = field(default_factory=dict)
    """Those of its nodes, if the tree is recorded."""
    usage: Usage = NOTHING
    """What its worker has spent since the previous part of the task."""

    @classmethod
    def of(cls, part: TreePart, usage: Usage = NOTHING) -> PartHeader:
        """The header of a part."""
        names = tuple(part.conditioning or ())
        logprobs = part.logprobs.cpu().numpy()
        return cls(part.tree, part.nodes, logprobs, part.leaves, names, part.diversity, part.thumbnails, usage)


def part_id(iteration: int, tree: int, leaves: IntArray) -> str:
    """The id of a part in score requests and in the trace."""
    return f"{iteration}/{tree}/{leaves[0]}"


def states_of(part: TreePart) -> dict[str, PackedTensor]:
    """The bulk of a `TreePart`."""
    import torch

    conditioning = {name: PackedTensor.of(value) for name, value in (part.conditioning or {}).items()}
    return {LATENTS: PackedTensor.of(torch.stack(list(part.latents))), **conditioning}


@dataclass(frozen=True)
class RemoteTree(Generic[Reference]):
    """A scored tree whose states lie elsewhere."""

    number: int
    prompt: str
    schedule: Schedule
    parts: Sequence[tuple[PartHeader, Reference]]
    rewards: Mapping[str, FloatArray]
    left_out: bool = False

    def tree(self, fetch: Callable[[Reference], States]) -> Tree:
        """The tree; `fetch` is called for a part when one of its states is asked for."""
        tree = Tree(self.number, self.prompt, self.schedule, left_out=self.left_out)
        for header, reference in self.parts:
            tree.add(received(header, partial(fetch, reference)))
        tree.rewards = dict(self.rewards)
        return tree


def received(header: PartHeader, fetch: Callable[[], States]) -> TreePart:
    """The `TreePart` of a header, and of states that `fetch` gets when they are asked for."""
    import torch

    states = _Fetched(fetch)
    return TreePart(
        tree=header.tree,
        nodes=header.nodes,
        logprobs=torch.from_numpy(header.logprobs.copy()),
        latents=_Latents(states, len(header.nodes)),
        leaves=header.leaves,
        conditioning=_Conditioning(states, header.conditioning) if header.conditioning else None,
        diversity=header.diversity,
    )


class _Fetched:
    """States, fetched once."""

    def __init__(self, fetch: Callable[[], States]) -> None:
        self._fetch = fetch

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: packed.tensor() for name, packed in self._fetch().items()}


class _Latents(Sequence["torch.Tensor"]):
    def __init__(self, states: _Fetched, count: int) -> None:
        self._states, self._count = states, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        return self._states.tensors[LATENTS][index]


class _Conditioning(Mapping[str, "torch.Tensor"]):
    def __init__(self, states: _Fetched, names: tuple[str, ...]) -> None:
        self._states, self._names = states, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._states.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
