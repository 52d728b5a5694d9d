"""Where a simulated run waits: processes that serve one after the other, the network, replicas that form batches."""

import math
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import simpy

from ...proto.settings import RewardPoolSettings
from .cores import Cores

Steps = Generator[simpy.Event, Any, None]


class Line:
    """Serves one after the other, in the order of arrival."""

    def __init__(self, env: simpy.Environment, cores: Cores | None = None) -> None:
        """`cores` are those that a process needs to serve."""
        self._env, self._cores, self._free, self.busy = env, cores, 0.0, 0.0
        self._turn = simpy.Resource(env)

    def book(self, seconds: float) -> float:
        """Have something served; when it will be done."""
        self._free = max(self._free, self._env.now) + seconds
        self.busy += seconds
        return self._free

    def serve(self, seconds: float) -> simpy.Event:
        """Succeeds when it has been served."""
        if self._cores and self._cores.shared:
            return self._env.process(self._serve(seconds, self._cores))
        return self._env.timeout(self.book(seconds) - self._env.now)

    def _serve(self, seconds: float, cores: Cores) -> Steps:
        with self._turn.request() as turn:
            yield turn
            yield cores.work(seconds)
            self.busy += seconds


class Network:
    """Nodes with a line out and a line in. What stays on a node costs nothing."""

    def __init__(self, env: simpy.Environment, nodes: int, bandwidth: float) -> None:
        self._env, self._bandwidth = env, bandwidth
        self.out, self.into = [Line(env) for _ in range(nodes)], [Line(env) for _ in range(nodes)]
        self.bytes = 0.0

    def send(self, source: int, target: int, size: float) -> simpy.Event:
        """Succeeds when so many bytes have arrived at another node."""
        if source == target:
            return self._env.timeout(0)
        self.bytes += size
        seconds = size / self._bandwidth
        arrived = max(self.out[source].book(seconds), self.into[target].book(seconds))
        return self._env.timeout(arrived - self._env.now)


class Replica:
    """One replica of a reward model, with the batches of `reward_service/batches.py`: when the model is free, and the
    first request has waited or the batch is full, it takes all that fits."""

    def __init__(
        self,
        env: simpy.Environment,
        node: int,
        settings: RewardPoolSettings,
        cores: Cores,
        per_call: float,
        per_picture: float,
    ) -> None:
        """`per_call` and `per_picture` are the seconds that the model takes."""
        self._env, self.node, self._seconds_per_call, self._seconds_per_picture = env, node, per_call, per_picture
        size, wait = settings.batch_pictures, settings.batch_wait_seconds
        self._size, self._wait = (1, 0.0) if settings.deterministic else (size, wait)
        self._per_call = size
        self.model = Line(env, cores)
        self.waiting = 0
        """Requests that are on their way here, wait, or are being scored."""
        self.batches: list[int] = []
        self._requests: deque[tuple[float, int, simpy.Event]] = deque()
        self._came = env.event()
        env.process(self._score_all())

    def score(self, pictures: int) -> simpy.Event:
        """Succeeds when a request is scored."""
        scored = self._env.event()
        self._requests.append((self._env.now, pictures, scored))
        if not self._came.triggered:
            self._came.succeed()
        return scored

    def _score_all(self) -> Steps:
        while True:
            if not self._requests:
                yield self._arrival()
            until = self._requests[0][0] + self._wait
            while self._env.now < until and sum(pictures for _, pictures, _ in self._requests) < self._size:
                yield self._arrival() | self._env.timeout(until - self._env.now)
            yield from self._score(self._batch())

    def _arrival(self) -> simpy.Event:
        self._came = self._env.event()
        return self._came

    def _batch(self) -> list[tuple[float, int, simpy.Event]]:
        batch = [self._requests.popleft()]
        while self._requests and sum(pictures for _, pictures, _ in [*batch, self._requests[0]]) <= self._size:
            batch.append(self._requests.popleft())
        return batch

    def _score(self, batch: Sequence[tuple[float, int, simpy.Event]]) -> Steps:
        pictures = sum(count for _, count, _ in batch)
        self.batches.append(pictures)
        calls = math.ceil(pictures / self._per_call)
        yield self.model.serve(calls * self._seconds_per_call + pictures * self._seconds_per_picture)
        self.waiting -= len(batch)
        for _, _, scored in batch:
            scored.succeed()
