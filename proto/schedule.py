"""The schedule of a tree: what happens at each denoising step, and all counts that follow from it.

Nodes of a tree are numbered breadth-first: depth 0 holds the roots, depth d the states after d steps, and
the K children of a node stand next to each other in the order of their parents. The number of a node thus
depends on the schedule alone, never on the order in which nodes are computed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt

Kernel = Literal["ode", "dpm", "dance", "flow", "cps", "ddim"]
RootNoise = Literal["independent", "antithetic"]
DETERMINISTIC_KERNELS: tuple[Kernel, ...] = ("ode", "dpm")
MIN_ETA, MAX_ETA = 1e-4, 10.0
"""Bounds for stochastic kernels: with less the rounding of states in float32 isn't small beside their noise, with more
nothing is left of a state."""
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One denoising step, the same for every node of its depth."""

    kernel: Kernel = "ode"
    """How the next state is drawn; `ode` (Euler) and `dpm` (DPM-Solver++ 2M) are deterministic, the others are not."""
    eta: float = 0.0
    """Noise level of a stochastic kernel."""
    children: int = 1
    """Into how many children each state is split (1: no split)."""
    trained: bool = False
    """Whether the transitions of this step enter the gradient."""
    stride: int = 1
    """Noise levels that it goes down by, on the grid of the policy."""

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.kernel not in DETERMINISTIC_KERNELS

    def __post_init__(self) -> None:
        if self.children < 1:
            raise ValueError(f"children is {self.children}; a step has at least 1")
        if self.stride < 1:
            raise ValueError(f"stride is {self.stride}; a step goes down by at least 1 noise level")
        most = 1.0 if self.kernel in ("cps", "ddim") else MAX_ETA
        if self.stochastic and not MIN_ETA <= self.eta <= most:
            raise ValueError(f"eta is {self.eta}; the kernel '{self.kernel}' takes values from {MIN_ETA} to {most:g}")
        if self.children > 1 and not self.stochastic:
            raise ValueError("a split needs a stochastic kernel: the children of a deterministic step would be equal")
        if self.trained and not self.stochastic:
            raise ValueError("a deterministic step has no density and can't be trained")


@dataclass(frozen=True)
class Schedule:
    """The shape of one prompt's tree: `roots` independent starts and one `Step` per denoising step.

    `sibling_spread` is s of METHOD: siblings of a split share a noise with correlation 1 / (1 + s^2); infinity makes
    them independent (BranchGRPO, eq. 2). With antithetic `root_noise` roots come in pairs that start from opposite
    noises; of an odd number the last is alone.
    """

    steps: tuple[Step, ...]
    roots: int = 1
    sibling_spread: float = 4.0
    root_noise: RootNoise = "independent"

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a schedule needs at least one step")
        if self.roots < 1:
            raise ValueError(f"roots is {self.roots}; a schedule has at least 1")
        if self.root_noise == "antithetic" and self.roots < 2:
            raise ValueError("root_noise is 'antithetic' and the schedule has 1 root; pairs need at least 2")
        if not self.sibling_spread >= 0:
            raise ValueError(f"sibling_spread is {self.sibling_spread}; it lies between 0 and .inf")
        if self.steps[-1].children > 1:
            raise ValueError(f"step {len(self.steps) - 1} is the last step and can't be split: give splits before it")
        if self.steps[-1].stochastic:
            raise ValueError(
                f"step {len(self.steps) - 1} is the last step and must be deterministic: its noise can't improve a "
                "picture"
            )

    @cached_property
    def levels(self) -> IntArray:
        """Place of every depth's noise level on the policy's grid, int64 [depths]: 0 for the roots."""
        return np.cumsum([0, *(step.stride for step in self.steps)])

    @property
    def grid_steps(self) -> int:
        """Steps of the grid on which the policy lays its noise levels."""
        return int(self.levels[-1])

    @property
    def splits(self) -> dict[int, int]:
        """Number of children by step of the grid, where there is more than one."""
        return {int(n): step.children for n, step in zip(self.levels, self.steps, strict=False) if step.children > 1}

    @cached_property
    def nodes_per_depth(self) -> tuple[int, ...]:
        """Number of nodes at depth 0 (the roots) to T (the leaves)."""
        counts = [self.roots]
        for step in self.steps:
            counts.append(counts[-1] * step.children)
        return tuple(counts)

    @cached_property
    def first_node(self) -> tuple[int, ...]:
        """Number of the first node of each depth, then the number of all nodes."""
        return (0, *(int(n) for n in np.cumsum(self.nodes_per_depth)))

    @property
    def nodes(self) -> int:
        """Number of nodes, the roots among them."""
        return self.first_node[-1]

    @property
    def leaves(self) -> int:
        """Number of leaves."""
        return self.nodes_per_depth[-1]

    def check_size(self, max_nodes: int) -> None:
        """Raises ValueError for a tree of more nodes. Counts no further, and makes no arrays."""
        count = nodes = self.roots
        for step in self.steps:
            count *= step.children
            nodes += count
            if nodes > max_nodes:
                raise ValueError(
                    f"a tree has more than {max_nodes:,} nodes; take fewer steps, splits or samples, or raise "
                    "schedule.max_nodes"
                )

    @property
    def forward_passes(self) -> int:
        """Rows through the network in a rollout: one per parent state, shared by all its children."""
        return self.nodes - self.leaves

    @property
    def edges(self) -> int:
        """Number of edges: one into every node except the roots."""
        return self.nodes - self.roots

    @property
    def trained_edges(self) -> int:
        """Number of edges that enter the objective, before pruning."""
        return sum(n for n, step in zip(self.nodes_per_depth[1:], self.steps, strict=True) if step.trained)

    @property
    def rows(self) -> int:
        """Distinct parent states of trained edges: the forward and backward passes that a learner needs."""
        return sum(n for n, step in zip(self.nodes_per_depth, self.steps, strict=False) if step.trained)

    @property
    def trained_depths(self) -> tuple[int, ...]:
        """Depths whose nodes are reached by a trained edge."""
        return tuple(i + 1 for i, step in enumerate(self.steps) if step.trained)

    @cached_property
    def depth(self) -> IntArray:
        """Depth of every node, int64 [nodes]."""
        return np.repeat(np.arange(len(self.nodes_per_depth)), self.nodes_per_depth)

    @cached_property
    def parent(self) -> IntArray:
        """Parent of every node, int64 [nodes]; -1 for roots."""
        parts = [np.full(self.roots, -1, dtype=np.int64)]
        for depth, step in enumerate(self.steps):
            first, count = self.first_node[depth], self.nodes_per_depth[depth]
            parts.append(np.repeat(np.arange(first, first + count), step.children))
        return np.concatenate(parts)

    @cached_property
    def trained(self) -> npt.NDArray[np.bool_]:
        """Whether the edge into each node is trained, bool [nodes]."""
        return np.isin(self.depth, self.trained_depths)


def tree_schedule(
    steps: int,
    *,
    kernel: Kernel,
    eta: float,
    splits: Mapping[int, int] | None = None,
    roots: int = 1,
    sibling_spread: float = 4.0,
    sde_steps: Sequence[int] | None = None,
    ode_stride: int = 1,
) -> Schedule:
    """Splits (step to number of children) and stochastic steps over `steps` denoising steps.

    `sde_steps` are stochastic and trained beside the splits; None means all but the last. The last step is always
    deterministic: its noise can't improve a picture, and the score of some kernels diverges there. With `ode_stride`, a
    deterministic stretch is taken in as many fewer steps, by a multistep solver.

    >>> tree_schedule(20, kernel="dance", eta=0.3, splits={0: 2, 3: 2, 6: 2, 9: 2}).forward_passes
    203
    """
    splits = dict(splits or {})
    for name, chosen in (("splits", splits), ("sde_steps", sde_steps or ())):
        if outside := [i for i in chosen if not 0 <= i < steps - 1]:
            raise ValueError(
                f"{name} names step {outside[0]}; of {steps} steps, 0 to {steps - 2} can be chosen "
                "(the last step is deterministic)"
            )
    if small := [(i, k) for i, k in splits.items() if k < 2]:
        raise ValueError(f"splits gives step {small[0][0]} {small[0][1]} children; a split has at least 2")
    stochastic = set(range(steps - 1) if sde_steps is None else sde_steps) | set(splits)
    taken: list[Step] = []
    for noisy, stretch in groupby(range(steps), stochastic.__contains__):
        if noisy:
            taken += [Step(kernel, eta, splits.get(i, 1), trained=True) for i in stretch]
        else:
            taken += _deterministic(len(list(stretch)), ode_stride)
    return Schedule(tuple(taken), roots=roots, sibling_spread=sibling_spread)


def _deterministic(length: int, stride: int) -> list[Step]:
    """Steps over a stretch of the grid, as even as can be."""
    if stride == 1:
        return [Step()] * length
    parts = np.array_split(np.arange(length), math.ceil(length / stride))
    return [Step("dpm", stride=len(part)) for part in parts]


def ode_schedule(steps: int) -> Schedule:
    """Plain deterministic sampling: one root, one leaf, nothing trained."""
    return Schedule(steps=(Step(),) * steps)
