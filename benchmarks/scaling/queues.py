"""Where a simulated run waits: processes that serve one after the other, the network, replicas that form batches."""

import math
from collections.abc import Generator, Sequence
from typing import Any

import simpy

from ...proto.settings import RewardPoolSettings
from .costs import Costs

Steps = Generator[simpy.Event, Any, None]


class Line:
    """Serves one after the other, in the order of arrival."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env, self._free, self.busy = env, 0.0, 0.0

    def book(self, seconds: float) -> float:
        """Have something served; when it will be done."""
        self._free = max(self._free, self._env.now) + seconds
        self.busy += seconds
        return self._free

    def serve(self, seconds: float) -> simpy.Event:
        """Succeeds when it has been served."""
        return self._env.timeout(self.book(seconds) - self._env.now)


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
    """One replica of a reward model, with Ray Serve's way of batching.

    A batch is closed when it is full or has waited; what comes later goes into the next one, even while this one still
    waits for the model.
    """

    def __init__(self, env: simpy.Environment, node: int, settings: RewardPoolSettings, costs: Costs) -> None:
        self._env, self.node, self._settings, self._costs = env, node, settings, costs
        self.model = Line(env)
        self.waiting = 0
        """Requests that are on their way here, wait, or are being scored."""
        self.batches: list[int] = []
        self._requests: simpy.Store = simpy.Store(env)
        env.process(self._form_batches())

    def score(self, pictures: int) -> simpy.Event:
        """Succeeds when a request is scored."""
        scored = self._env.event()
        self._requests.put((pictures, scored))
        return scored

    def _form_batches(self) -> Steps:
        pool = self._settings
        late: tuple[int, simpy.Event] | None = None
        while True:
            if late is None:
                late = yield self._requests.get()
            batch: list[Any] = [late]
            late, closing = None, self._env.timeout(pool.batch_wait_seconds)
            while not late and sum(pictures for pictures, _ in batch) < pool.batch_pictures:
                request = self._requests.get()
                yield request | closing
                if not request.triggered:
                    request.cancel()
                    break
                came: Any = request.value
                if sum(pictures for pictures, _ in batch) + came[0] > pool.batch_pictures:
                    late = came
                else:
                    batch.append(came)
            self._env.process(self._score(batch))

    def _score(self, batch: Sequence[tuple[int, simpy.Event]]) -> Steps:
        pictures = [count for count, _ in batch]
        asked = pictures if self._settings.deterministic else [sum(pictures)]
        calls = sum(math.ceil(count / self._settings.batch_pictures) for count in asked)
        self.batches.append(sum(pictures))
        yield self.model.serve(calls * self._costs.score_batch + sum(pictures) * self._costs.score_picture)
        self.waiting -= len(batch)
        for _, scored in batch:
            scored.succeed()
