"""What work costs a process: wall, CPU and GPU seconds, by phase. Beside wall seconds, CPU seconds tell a busy machine
from a slow program.

CPU seconds are those of the whole process, for networks compute in many threads. So a process may measure only work
that it does alone.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    import torch

CPU_SECONDS = Counter(
    "branchgrpo_cpu_seconds",
    "CPU seconds of this process in a phase (rollout, scoring, learning, publishing), of all its threads.",
    ["phase"],
)
GPU_SECONDS = Counter(
    "branchgrpo_gpu_seconds",
    "Seconds of this process's GPU in network calls and optimizer steps, by phase; absent without a GPU.",
    ["phase"],
)
DEVICE_PEAK = Gauge(
    "branchgrpo_device_peak_flops",
    "FLOP/s that this process's GPU can do at most in the precision of its network; NaN where it isn't known.",
)
DEVICE_PEAK.set(math.nan)  # 0 would be a value

_peak: float | None = None
_calls: list[tuple[Any, Any]] = []
"""Events at start and end of the GPU's calls that no lap has counted yet."""


@dataclass(frozen=True)
class Usage:
    """What some work has cost, added up over processes."""

    seconds: float = 0.0
    """Wall seconds in which a process was at it."""
    cpu_seconds: float = 0.0
    gpu_seconds: float | None = None
    """None without a GPU."""
    possible_flops: float | None = None
    """Floating-point operations that its GPUs could have done in `seconds`; None for GPUs whose peak isn't known."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            _sum(self.gpu_seconds, other.gpu_seconds),
            _sum(self.possible_flops, other.possible_flops),
        )

    def share(self, part: float) -> "Usage":
        """The usage of a `part` of the work, from 0 to 1."""
        gpu, possible = (None if all_ is None else all_ * part for all_ in (self.gpu_seconds, self.possible_flops))
        return Usage(self.seconds * part, self.cpu_seconds * part, gpu, possible)


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


NOTHING = Usage()


class Stopwatch:
    """Measures the work of this process on a phase, lap by lap."""

    def __init__(self, phase: str) -> None:
        """Begins the first lap."""
        self._phase = phase
        self.start()

    def start(self) -> None:
        """Begin a lap now. What was done since the last one isn't measured."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self) -> Usage:
        """What was spent since the lap began, which is also counted for Prometheus. Begins the next lap."""
        wall, cpu = self._wall, self._cpu
        self.start()
        seconds = self._wall - wall
        possible = None if _peak is None else _peak * seconds
        used = Usage(seconds, self._cpu - cpu, _finished_calls(), possible)
        CPU_SECONDS.labels(self._phase).inc(used.cpu_seconds)
        if used.gpu_seconds is not None:
            GPU_SECONDS.labels(self._phase).inc(used.gpu_seconds)
        return used


def export(*phases: str) -> None:
    """Export the CPU seconds of phases from now on, before there is anything to count."""
    for phase in phases:
        CPU_SECONDS.labels(phase)


def note_peak(flops: float) -> None:
    """Note what this process' GPU can do at most, in FLOP/s."""
    global _peak
    _peak = flops
    DEVICE_PEAK.set(flops)


@contextmanager
def on_gpu(device: "torch.device") -> Iterator[None]:
    """Measure the GPU's seconds in the calls inside the block; nothing on the CPU.

    The host doesn't wait for them: the lap that finds them finished counts them.
    """
    if device.type != "cuda":
        yield
        return
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(torch.cuda.current_stream(device))
    yield
    end.record(torch.cuda.current_stream(device))
    _calls.append((start, end))


def _finished_calls() -> float | None:
    """The GPU's seconds in finished calls that weren't counted before. None if it made none."""
    if not _calls:
        return None
    finished, unfinished = list[tuple[Any, Any]](), list[tuple[Any, Any]]()
    for call in _calls:
        (finished if all(event.query() for event in call) else unfinished).append(call)
    _calls[:] = unfinished
    return sum(start.elapsed_time(end) for start, end in finished) / 1000
