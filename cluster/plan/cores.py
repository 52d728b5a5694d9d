"""Processor cores that the processes of a simulated run share."""

import heapq
from itertools import count

import simpy


class Cores:
    """Cores of equal speed. All processes at work go on equally fast: each at full speed while it has a core to itself,
    and slower while other cores are busy too, as these share memory and caches."""

    def __init__(self, env: simpy.Environment, cores: int, slowdown: float = 1.0, standing: float = 0.0) -> None:
        """With no `cores` every process has a device of its own. `slowdown` is how many times as long work takes while
        all cores are busy. `standing` is the number of cores that other programs take if all have work."""
        self._env, self._cores, self._slowdown, self._standing = env, cores, slowdown, standing
        self._done = 0.0
        """Seconds of work that each process has done since the beginning, had it always been at work."""
        self._since = 0.0
        self._at_work: list[tuple[float, int, int, simpy.Event]] = []
        """By what `_done` will be at their end: an order of beginning, the number of processes, the event."""
        self._order = count()
        self._next: simpy.Event | None = None

    @property
    def shared(self) -> bool:
        """Whether processes share cores at all."""
        return self._cores > 0

    def work(self, seconds: float, processes: int = 1) -> simpy.Event:
        """Succeeds when so many processes, each with work for so many seconds of a core of its own, are done."""
        if not self.shared:
            return self._env.timeout(seconds)
        self._go_on()
        done = self._env.event()
        heapq.heappush(self._at_work, (self._done + seconds, next(self._order), processes, done))
        self._wait()
        return done

    def speed(self) -> float:
        """Seconds of work that a process does in a second, with those that are at work now."""
        processes = sum(number for _, _, number, _ in self._at_work)
        if not processes:
            return 1.0
        share = min(1.0, (self._cores - self._standing * (processes >= self._cores)) / processes)
        others = (min(processes, self._cores) - 1) / max(self._cores - 1, 1)
        return share / (1 + (self._slowdown - 1) * others)

    def _go_on(self) -> None:
        self._done += (self._env.now - self._since) * self.speed()
        self._since = self._env.now

    def _wait(self) -> None:
        """Wait for the first of those at work to be done, unless another begins before."""
        if self._at_work:
            self._next = self._env.timeout(max(0.0, self._at_work[0][0] - self._done) / self.speed())
            self._next.callbacks.append(self._end_first)

    def _end_first(self, event: simpy.Event) -> None:
        if event is self._next:
            self._go_on()
            heapq.heappop(self._at_work)[3].succeed()
            self._wait()
