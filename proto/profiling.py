"""Torch's profiler around work of a running process: which work is asked for, and where its traces go.

Torch records the operations of the thread that starts the profiler, so it starts and ends where the work is done.
"""

import os
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from logging import getLogger
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .atomic_files import whole
from .tracing import process_name

if TYPE_CHECKING:
    import torch

PROCESS = "branchgrpo_process"
"""Key of a trace's process, as spans name it."""

QUIET = "6"
"""Level of the log of torch's profiler above its lines of each start and end."""

_spent: dict["ProfileOrder", float] = {}
"""Order for one component -> seconds that this process has been profiled for it."""


class Component(StrEnum):
    """The processes of a run that have work for torch."""

    ROLLOUT = "rollout"
    LEARNER = "learner"
    REWARD = "reward"


@dataclass(frozen=True)
class ProfileRequest:
    """Which work of a run is to be profiled, in the next iterations that begin."""

    iterations: int
    """Number of iterations."""
    components: tuple[Component, ...]
    everyone: bool = False
    """Whether all processes of these components are profiled, or one of each."""
    seconds: float = 20.0
    """Maximum seconds of a component in a process: its next part of work begins unprofiled then."""

    def order(self, folder: Path, begun: int, iterations: int) -> "ProfileOrder":
        """The order for the iterations after `begun`, of so many in all, with its traces in `folder`."""
        last = min(begun + self.iterations, iterations)
        return ProfileOrder(folder, self.components, begun + 1, last, self.everyone, self.seconds)


@dataclass(frozen=True)
class ProfileOrder:
    """A request that a run has taken up."""

    folder: Path
    """Folder of the traces: a file for every piece of work of a process."""
    components: tuple[Component, ...]
    first: int
    """First iteration."""
    last: int
    """Last iteration."""
    everyone: bool
    """As in `ProfileRequest`."""
    seconds: float
    """As in `ProfileRequest`."""

    def of(self, component: Component) -> "ProfileOrder":
        """The part of the order for one component."""
        return replace(self, components=(component,))


class ProfilerScope:
    """Torch's profiler, on inside the block if there is an order that this process hasn't fulfilled."""

    def __init__(self, order: ProfileOrder | None) -> None:
        self._order = order
        self._profiler: torch.profiler.profile | None = None
        self._begun = 0.0

    def __enter__(self) -> Self:
        order = self._order
        if order and _spent.get(order, 0.0) < order.seconds:
            os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
            from torch.profiler import profile

            profiler = profile()  # on the CPU, and on the GPU if there is one
            try:
                profiler.start()
                profiler.add_metadata(PROCESS, process_name())
            except RuntimeError as error:  # own code may be profiling itself: the run goes on
                getLogger(__name__).warning("%s can't be profiled: %s", process_name(), error)
            else:
                self._profiler, self._begun = profiler, time.perf_counter()
        return self

    def between(self) -> None:
        """End early, between two parts of the work, once the order's seconds are over."""
        order = self._order
        if order and self._profiler and self._seconds(order) >= order.seconds:
            self._end(order, self._profiler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._order and self._profiler:
            self._end(self._order, self._profiler)

    def _seconds(self, order: ProfileOrder) -> float:
        return _spent.get(order, 0.0) + time.perf_counter() - self._begun

    def _end(self, order: ProfileOrder, profiler: "torch.profiler.profile") -> None:
        _spent[order] = self._seconds(order)
        self._profiler = None
        profiler.stop()
        name = process_name().replace(" ", "-").replace(":", "-")
        try:
            with whole(order.folder / f"{name}-{time.time_ns()}.json") as path:
                profiler.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:  # a full disk, say: the run needs no profile
            getLogger(__name__).warning("%s has left no profile: %s", process_name(), error)
