"""The methods of the field as schedules: each chooses which steps split and which are noisy.

With N roots and no splits, fusion and normalising over the group are plain GRPO, so sequential methods need no extra
code. If all samples of a method take the same deterministic steps first, those are computed once, and the tree splits
where the noise starts: the samples have the same distribution, for fewer forward passes.

Steps are counted from 0 and iterations from 1. The defaults are those of the papers, if they name one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from .schedule import Kernel, Schedule, tree_schedule

LOTS = 4
"""Stream of random numbers, beside those of `rollout_workers/noise.py`, from which schedules draw lots."""
INDEPENDENT_SPREAD = math.inf
"""Sibling spread of children whose noises have nothing in common."""

SPLITS: Mapping[str, Sequence[int]] = {
    "early": (0, 1, 2, 3),
    "dense": (0, 3, 6, 9),
    "mixed": (0, 2, 6, 12),
    "sparse": (0, 5, 10, 15),
    "late": (9, 11, 13, 15),
}
"""Named places of four splits into two, for 20 steps. For another number they are spread alike."""


def dance_grpo(
    *, steps: int = 20, group: int = 16, shared_start: bool = False, kernel: Kernel = "dance", eta: float = 0.3
) -> Schedule:
    """`group` independent samples, every step noisy (DanceGRPO, arXiv 2505.07818).

    With `shared_start` they begin with the same noise (its `init_same_noise`).
    """
    return tree_schedule(
        steps,
        kernel=kernel,
        eta=eta,
        roots=1 if shared_start else group,
        splits={0: group} if shared_start else {},
        sibling_spread=INDEPENDENT_SPREAD,
    )


def flow_grpo(*, steps: int = 10, group: int = 24, kernel: Kernel = "flow", eta: float = 0.7) -> Schedule:
    """`group` independent samples, every step noisy (Flow-GRPO, arXiv 2505.05470).

    Its KL term is `learner.kl_weight`.
    """
    return dance_grpo(steps=steps, group=group, kernel=kernel, eta=eta)


def flow_grpo_fast(
    *,
    steps: int = 10,
    group: int = 24,
    window: int = 2,
    kernel: Kernel = "flow",
    eta: float = 0.7,
    ode_stride: int = 1,
    iteration: int = 1,
    seed: int = 0,
    start: int | None = None,
) -> Schedule:
    """Deterministic to a random step, a split into `group` there, `window` noisy steps, deterministic to the end.

    The step is drawn at random in every iteration (Flow-GRPO's fast variant), unless it is the `start`.
    """
    start = _drawn(steps - window, iteration, seed) if start is None else start
    return _windowed(steps, start, window, {start: group}, INDEPENDENT_SPREAD, kernel, eta, ode_stride)


def mix_grpo(
    *,
    steps: int = 25,
    group: int = 12,
    window: int = 4,
    window_start: int = 0,
    window_stride: int = 1,
    window_every: int = 25,
    window_end: Literal["stay", "restart"] = "stay",
    kernel: Kernel = "flow",
    eta: float = 0.7,
    ode_stride: int = 1,
    iteration: int = 1,
) -> Schedule:
    """A shared start, `group` samples that are noisy in a sliding window only (MixGRPO, arXiv 2507.21802).

    The window moves by `window_stride` steps every `window_every` iterations. At the end it stays or starts again.
    """
    start = _slid(steps, window, window_start, window_stride, window_every, window_end, iteration)
    return _windowed(steps, start, window, {start: group}, INDEPENDENT_SPREAD, kernel, eta, ode_stride)


def tempflow_grpo(
    *,
    steps: int = 10,
    children: int = 16,
    split_step: int | None = None,
    kernel: Kernel = "flow",
    eta: float = 0.7,
    ode_stride: int = 1,
    iteration: int = 1,
) -> Schedule:
    """Deterministic except for one split into `children` (TempFlow-GRPO, arXiv 2508.04324).

    Without `split_step` the split moves on by a step with every iteration. Its loss weights are
    `advantage.noise_weight`.
    """
    start = (iteration - 1) % max(steps - 1, 1) if split_step is None else split_step
    return _windowed(steps, start, 1, {start: children}, INDEPENDENT_SPREAD, kernel, eta, ode_stride)


def tree_grpo(
    *,
    steps: int = 10,
    children: int = 2,
    window: int = 4,
    kernel: Kernel = "flow",
    eta: float = 0.7,
    ode_stride: int = 1,
    iteration: int = 1,
    seed: int = 0,
    start: int | None = None,
) -> Schedule:
    """Every step of a random window splits into `children` (TreeGRPO, arXiv 2512.08153), the rest is deterministic.

    The window's first step may be given as its `start`.
    """
    start = _drawn(steps - window, iteration, seed) if start is None else start
    splits = dict.fromkeys(range(start, start + window), children)
    return _windowed(steps, start, window, splits, INDEPENDENT_SPREAD, kernel, eta, ode_stride)


def branch_grpo(
    *,
    steps: int = 20,
    splits: Mapping[int, int] | str = "dense",
    sibling_spread: float = 4.0,
    roots: int = 1,
    sde_steps: Sequence[int] | None = None,
    kernel: Kernel = "dance",
    eta: float = 0.3,
    ode_stride: int = 1,
) -> Schedule:
    """Splits into correlated children, every other step noisy (BranchGRPO, arXiv 2509.06040).

    `splits` gives each split its number of children, or names one of `SPLITS`. With `sde_steps`, only those are noisy
    beside the splits.
    """
    return tree_schedule(
        steps,
        kernel=kernel,
        eta=eta,
        splits=_placed(splits, steps),
        roots=roots,
        sibling_spread=sibling_spread,
        sde_steps=sde_steps,
        ode_stride=ode_stride,
    )


def branch_grpo_mix(
    *,
    steps: int = 20,
    splits: Mapping[int, int] | str = "dense",
    sibling_spread: float = 4.0,
    roots: int = 1,
    window: int = 4,
    window_start: int = 0,
    window_stride: int = 0,
    window_every: int = 30,
    window_end: Literal["stay", "restart"] = "stay",
    kernel: Kernel = "dance",
    eta: float = 0.3,
    ode_stride: int = 1,
    iteration: int = 1,
) -> Schedule:
    """Splits, and a window of noisy steps; the others are deterministic (BranchGRPO-Mix, arXiv 2509.06040).

    The window stays where it is (as in the authors' code) or, with a `window_stride`, slides as MixGRPO's does.
    """
    start = _slid(steps, window, window_start, window_stride, window_every, window_end, iteration)
    return _windowed(steps, start, window, _placed(splits, steps), sibling_spread, kernel, eta, ode_stride, roots)


def nft(*, steps: int = 10, group: int = 24, ode_stride: int = 1) -> Schedule:
    """`group` independent samples, every step deterministic (DiffusionNFT, arXiv 2509.16117).

    It is for `learner.objective` nft and awm, which learn from leaves alone.
    """
    return tree_schedule(steps, kernel="ode", eta=0.0, roots=group, sde_steps=(), ode_stride=ode_stride)


METHODS: Mapping[str, Callable[..., Schedule]] = {
    method.__name__: method
    for method in (
        branch_grpo,
        branch_grpo_mix,
        dance_grpo,
        flow_grpo,
        flow_grpo_fast,
        mix_grpo,
        nft,
        tempflow_grpo,
        tree_grpo,
    )
}
"""Name -> method. Methods that change with the iteration have a parameter `iteration`; random ones have a `seed`, and
a `start` in place of the drawn step."""


def _windowed(
    steps: int,
    start: int,
    window: int,
    splits: Mapping[int, int],
    spread: float,
    kernel: Kernel,
    eta: float,
    ode_stride: int,
    roots: int = 1,
) -> Schedule:
    return tree_schedule(
        steps,
        kernel=kernel,
        eta=eta,
        splits=splits,
        roots=roots,
        sibling_spread=spread,
        sde_steps=range(start, start + window),
        ode_stride=ode_stride,
    )


def _slid(
    steps: int, window: int, start: int, stride: int, every: int, end: Literal["stay", "restart"], iteration: int
) -> int:
    """First step of a window that moves on by `stride` every `every` iterations; the last step stays outside."""
    last = steps - 1 - window
    if not 0 <= start <= last:
        raise ValueError(
            f"window_start is {start} with a window of {window}; of {steps} steps it can start at 0 to {last} "
            "(the last step is deterministic)"
        )
    moves = (iteration - 1) // every
    if end == "stay":
        return min(start + stride * moves, last)
    places = range(start, last + 1, stride) if stride else range(start, start + 1)
    return places[moves % len(places)]


def _drawn(places: int, iteration: int, seed: int) -> int:
    """A number below `places`, which depends on seed and iteration alone."""
    if places < 1:
        raise ValueError("window is as long as the steps; the last step is deterministic, so it must be shorter")
    lots = np.random.Philox(key=[seed, iteration], counter=[0, 0, 0, LOTS])
    return int(np.random.Generator(lots).integers(places))


def _placed(splits: Mapping[int, int] | str, steps: int) -> Mapping[int, int]:
    """Named splits, spread over `steps` as over 20."""
    if not isinstance(splits, str):
        return splits
    if splits not in SPLITS:
        raise ValueError(f"splits is '{splits}'; it must give steps their children, or be one of {', '.join(SPLITS)}")
    places = [round(place * steps / 20) for place in SPLITS[splits]]
    if len(set(places)) < len(places):
        raise ValueError(f"splits is '{splits}', which needs more than {steps} steps")
    return dict.fromkeys(places, 2)
