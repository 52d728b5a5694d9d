"""A discrete-event simulation of a run on Ray: who waits for whom, with costs in place of computations.

It follows `cluster/on_ray/controller.py`: tasks go to free workers, parts wait for the controller, for scores and for
the learner, and back-pressure holds workers up. The recipe is that of a real run; how trees are cut into forward
passes and parts is computed from its schedule, as `rollout_workers/expansion.py` does. Nothing is random: the same
arguments give the same outcome.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import simpy

from ...cluster.run.cuts import MAX_UNREAD_PARTS, groups, windows
from ...proto.schedule import IntArray, Schedule
from ...proto.settings import RewardPoolSettings, RunSettings

Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Costs:
    """Seconds, bytes, and bytes per second. What isn't given costs nothing."""

    forward: float = 0.0
    """A forward pass of a rollout, however many rows it has."""
    forward_row: float = 0.0
    decode_picture: float = 0.0
    score_batch: float = 0.0
    """A call of a reward model, however many pictures it gets."""
    score_picture: float = 0.0
    micro_batch: float = 0.0
    """A forward and backward pass of the learner, however many rows it has; gradients that are reduced after it."""
    learn_row: float = 0.0
    update: float = 0.0
    """An optimizer step."""
    load_weights: float = 0.0
    """Taking over weights that lie on the worker's node."""

    picture_bytes: float = 0.0
    state_bytes: float = 0.0
    conditioning_bytes: float = 0.0
    """Bytes of a prompt's conditioning, which is sent with a tree's first part."""
    weights_bytes: float = 0.0

    put: float = math.inf
    """Bytes per second into the object store, from the process that made them."""
    network: float = math.inf
    """Bytes per second out of a node, and into one."""
    latency: float = 0.0
    """Seconds of a message between two processes."""

    part_message: float = 0.0
    """Seconds of the controller for a part of a tree, from its arrival to the request to the rewards."""
    score_reply: float = 0.0
    """Seconds of the controller for a reward model's reply."""
    window_tree: float = 0.0
    """Seconds of the controller to write down a tree of a window, once for all learner ranks."""
    window_rank: float = 0.0
    """Seconds of the controller to hand a window to one learner rank."""


@dataclass(frozen=True)
class Cluster:
    """Where processes run. Workers come first, then learner ranks, then replicas; colocated ranks are the workers."""

    workers: int
    ranks: int
    replicas: int
    """Number of replicas of each reward model."""
    per_node: int = 8
    """Workers and ranks on a node; replicas lie on the nodes one by one."""

    @classmethod
    def of(cls, settings: RunSettings, per_node: int = 8) -> "Cluster":
        """The pools of a recipe."""
        pools = settings.pools
        replicas = max((pool.replicas for pool in pools.rewards.values()), default=1)
        colocated = settings.placement == "colocated"
        workers = pools.learner.count if colocated else pools.rollout_workers.count
        return cls(workers, pools.learner.count, replicas, per_node)

    def worker_node(self, worker: int) -> int:
        return worker // self.per_node

    def rank_node(self, rank: int, colocated: bool) -> int:
        return (rank if colocated else self.workers + rank) // self.per_node

    def nodes(self, colocated: bool) -> int:
        return self.rank_node(self.ranks - 1, colocated) + 1


@dataclass(frozen=True)
class Part:
    """A finished part of a tree."""

    tree: int
    """Position in the task."""
    leaves: int
    nodes: IntArray
    first: bool


@dataclass(frozen=True)
class Stretch:
    """Forward passes up to the decoding of a chunk of leaves, and the parts that it gives."""

    forwards: tuple[int, ...]
    """Rows of each."""
    pictures: int
    parts: tuple[Part, ...]


@lru_cache(maxsize=64)
def stretches(schedule: Schedule, trees: int, max_batch_rows: int) -> tuple[Stretch, ...]:
    """The steps of a worker for a task of so many trees, in order.

    The states of one depth of all trees are numbered through: a chunk is a range of them, and so are its children.
    """
    done: list[Stretch] = []
    forwards: list[int] = []
    pending: list[list[IntArray]] = [[] for _ in range(trees)]
    started: set[int] = set()

    def runs(depth: int, begin: int, end: int) -> Iterator[tuple[int, IntArray]]:
        """Trees that a chunk belongs to, with their nodes in it."""
        width = schedule.nodes_per_depth[depth]
        for tree in range(begin // width, (end - 1) // width + 1):
            inside = np.arange(max(begin - tree * width, 0), min(end - tree * width, width))
            yield tree, schedule.first_node[depth] + inside

    def grow(depth: int, begin: int, end: int) -> None:
        if depth == len(schedule.steps):
            parts = []
            for tree, leaves in runs(depth, begin, end):
                nodes, pending[tree] = np.concatenate(pending[tree]), []
                parts.append(Part(tree, len(leaves), nodes, tree not in started))
                started.add(tree)
            done.append(Stretch(tuple(forwards), end - begin, tuple(parts)))
            forwards.clear()
        elif end - begin > max_batch_rows:
            for cut in range(begin, end, max_batch_rows):
                grow(depth, cut, min(cut + max_batch_rows, end))
        else:
            forwards.append(end - begin)
            children = schedule.steps[depth].children
            note(depth + 1, begin * children, end * children)
            grow(depth + 1, begin * children, end * children)

    def note(depth: int, begin: int, end: int) -> None:
        for tree, nodes in runs(depth, begin, end):
            pending[tree].append(nodes)

    note(0, 0, trees * schedule.roots)
    grow(0, 0, trees * schedule.roots)
    return tuple(done)


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
        return self._env.timeout(self.book(seconds) - self._env.now)


class Network:
    """Nodes with a line out and a line in. What stays on a node costs nothing."""

    def __init__(self, env: simpy.Environment, nodes: int, bandwidth: float) -> None:
        self._env, self._bandwidth = env, bandwidth
        self.out, self.into = [Line(env) for _ in range(nodes)], [Line(env) for _ in range(nodes)]
        self.bytes = 0.0

    def send(self, source: int, target: int, size: float) -> simpy.Event:
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


@dataclass
class GrowingTree:
    """A tree on its way to the learner."""

    node: int = 0
    """The node that holds the tree's states."""
    parts: list[Part] = field(default_factory=list)
    scored: int = 0


class Iteration:
    """The trees of one iteration."""

    def __init__(self, env: simpy.Environment, trees: int, version: int) -> None:
        self.version = version
        self.trees = [GrowingTree() for _ in range(trees)]
        self.ready = [env.event() for _ in range(trees)]


@dataclass
class Outcome:
    """The result of a simulated run."""

    seconds: list[float] = field(default_factory=list)
    """Seconds of each iteration."""
    busy: dict[str, float] = field(default_factory=dict)
    """Share of the time after the first iteration that each part worked: rollout workers and learner ranks (means), the
    busiest replica, the controller, the busiest line of the network."""
    waiting: dict[str, float] = field(default_factory=dict)
    """Share of that time that workers waited for weights and for back-pressure (means), and the learner for states and
    for weights to be put into the object store."""
    counts: Counter[str] = field(default_factory=Counter)
    """Parts, pictures scored (by each model), trees learned; bytes sent."""
    most: Counter[str] = field(default_factory=Counter)
    """The most at once: parts unread of a worker, parts in scoring, trees in flight."""
    batches: list[int] = field(default_factory=list)
    """Pictures of each batch that was scored."""


def simulate(settings: RunSettings, costs: Costs, cluster: Cluster | None = None, iterations: int = 3) -> Outcome:
    """The outcome of so many iterations of a recipe. Every reward model must be named in `pools.rewards`.

    Learner ranks train every row: no edge without an advantage, none pruned.
    """
    return Simulation(settings, costs, cluster or Cluster.of(settings), iterations).outcome


class Simulation:
    """One run."""

    def __init__(self, settings: RunSettings, costs: Costs, cluster: Cluster, iterations: int) -> None:
        self.settings, self.costs, self.cluster, self.iterations = settings, costs, cluster, iterations
        self.colocated = settings.placement == "colocated"
        self.schedule = settings.schedule.build()
        self.env = env = simpy.Environment()
        nodes = cluster.nodes(self.colocated)
        self.network = Network(env, nodes, costs.network)
        self.controller = Line(env)
        self.free: simpy.Store = simpy.Store(env)
        self.free.items.extend(range(cluster.workers))
        self.in_scoring = simpy.Resource(env, settings.rollout.max_parts_in_scoring)
        self.room = simpy.Container(env, settings.max_trees_ahead, settings.max_trees_ahead)
        self.models = [
            [Replica(env, n % nodes, pool, costs) for n in range(cluster.replicas)]
            for pool in settings.pools.rewards.values()
        ]
        self.held = [0] * cluster.workers
        """Version of each worker's weights."""
        self.on_node: dict[tuple[int, int], simpy.Event] = {}
        """The time at which a version of the weights reaches a node."""
        self.newest = 0
        self.spent: defaultdict[str, float] = defaultdict(float)
        """Seconds of all workers and of all ranks, by what they did."""
        self.outcome = Outcome()
        env.run(env.process(self._iterate()))

    # The loop, as in the controller -------------------------------------------------------------------------------

    def _iterate(self) -> Steps:
        ahead: Iteration | None = None
        start, began, before = 0.0, 0.0, self._work_done()
        for number in range(1, self.iterations + 1):
            iteration = ahead or self._sample()
            ahead = self._sample() if self.settings.staleness and number < self.iterations else None
            yield from self._learn(iteration)
            yield from self._publish()
            self.outcome.seconds.append(self.env.now - start)
            start = self.env.now
            if number == 1 < self.iterations:
                began, before = start, self._work_done()
        done, seconds = self._work_done(), self.env.now - began
        shares = {name: (done[name] - before[name]) / seconds if seconds else 0.0 for name in done}
        waits = ("weights", "back-pressure", "states", "publishing")
        self.outcome.busy = {name: share for name, share in shares.items() if name not in waits}
        self.outcome.waiting = {name: shares[name] for name in waits}
        self.outcome.counts["bytes"] = round(self.network.bytes)
        self.outcome.batches = [n for replicas in self.models for replica in replicas for n in replica.batches]

    def _sample(self) -> Iteration:
        iteration = Iteration(self.env, self.settings.prompts.per_iteration, self.newest)
        for task in groups(len(iteration.trees), self.settings.rollout.trees_per_task):
            self.env.process(self._sample_task(iteration, task))
        return iteration

    def _sample_task(self, iteration: Iteration, task: range) -> Steps:
        yield self.room.get(len(task))
        self._at_most("trees in flight", round(self.room.capacity - self.room.level))
        worker = yield self.free.get()
        # What is written while another waits to be written counts as unread too.
        stream: simpy.Store = simpy.Store(self.env, MAX_UNREAD_PARTS - 1)
        work = stretches(self.schedule, len(task), self.settings.rollout.max_batch_rows)
        self.env.process(self._work(iteration, worker, work, stream))
        for _ in range(sum(len(stretch.parts) for stretch in work)):
            part = yield stream.get()
            yield self.controller.serve(self.costs.part_message)
            tree = iteration.trees[task[part.tree]]
            tree.node = self.cluster.worker_node(worker)
            tree.parts.append(part)
            self.outcome.counts["parts"] += 1
            place = self.in_scoring.request()
            yield place
            self._at_most("parts in scoring", self.in_scoring.count)
            self.env.process(self._score(iteration, task[part.tree], part, place))
        self.free.put(worker)

    def _work(self, iteration: Iteration, worker: int, work: Sequence[Stretch], stream: simpy.Store) -> Steps:
        """A worker's part in a task."""
        costs = self.costs
        yield self.env.timeout(costs.latency)
        if self.held[worker] != iteration.version and not self.colocated:
            since = self.env.now
            yield self._weights_on(self.cluster.worker_node(worker), iteration.version)
            yield self.env.timeout(costs.load_weights)
            self.spent["weights"] += self.env.now - since
        self.held[worker] = iteration.version
        for stretch in work:
            seconds = sum(costs.forward + rows * costs.forward_row for rows in stretch.forwards)
            seconds += stretch.pictures * costs.decode_picture
            self.spent["rollout"] += seconds
            yield self.env.timeout(seconds)
            for part in stretch.parts:
                putting = (part.leaves * costs.picture_bytes + self._bytes(part)) / costs.put
                self.spent["rollout"] += putting
                yield self.env.timeout(putting)
                since, written = self.env.now, stream.put(part)
                self._at_most("parts unread", len(stream.items) + len(stream.put_queue))
                yield written
                self.spent["back-pressure"] += self.env.now - since

    def _score(self, iteration: Iteration, number: int, part: Part, place: Any) -> Steps:
        tree = iteration.trees[number]
        with place:
            yield self.env.all_of([self.env.process(self._ask(tree.node, part, model)) for model in self.models])
        tree.scored += part.leaves
        self.outcome.counts["pictures"] += part.leaves
        if tree.scored == self.schedule.leaves:
            iteration.ready[number].succeed()

    def _ask(self, node: int, part: Part, model: Sequence[Replica]) -> Steps:
        """The request to one model and its reply."""
        replica = min(model, key=lambda replica: replica.waiting)
        replica.waiting += 1
        yield self.env.timeout(self.costs.latency)
        yield self.network.send(node, replica.node, part.leaves * self.costs.picture_bytes)
        yield replica.score(part.leaves)
        yield self.env.timeout(self.costs.latency)
        yield self.controller.serve(self.costs.score_reply)

    def _learn(self, iteration: Iteration) -> Steps:
        costs, ranks = self.costs, self.cluster.ranks
        for window in windows(self.settings, 0):
            begin, end = window.trees[0], window.trees[-1] + 1
            needed = len(iteration.trees) if self.colocated else end
            yield self.env.all_of(iteration.ready[begin:needed])
            yield self.controller.serve(costs.window_tree * (end - begin) + costs.window_rank * ranks)
            yield self.env.timeout(costs.latency)
            since = self.env.now
            yield self.env.all_of(list(self._fetch(iteration.trees[begin:end])))
            self.spent["states"] += self.env.now - since
            rows = math.ceil(self.schedule.rows * (end - begin) / ranks)  # of the largest share
            batches = math.ceil(rows / self.settings.learner.rows_per_micro_batch)
            seconds = batches * costs.micro_batch + rows * costs.learn_row + window.closes_update * costs.update
            self.spent["learner"] += seconds
            yield self.env.timeout(seconds + costs.latency)
            iteration.trees[begin:end] = []  # their parts are forgotten
            iteration.trees[begin:begin] = [GrowingTree() for _ in range(begin, end)]
            self.outcome.counts["trees"] += end - begin
            yield self.room.put(end - begin)

    def _fetch(self, trees: Sequence[GrowingTree]) -> Iterator[simpy.Event]:
        """Parts with a row of the ranks of each node, once per node; a rank's rows follow one another."""
        every, ranks = self.schedule.rows, self.cluster.ranks
        first_rank: dict[int, int] = {}
        for rank in range(ranks):
            first_rank.setdefault(self.cluster.rank_node(rank, self.colocated), rank)
        last_rank = [*list(first_rank.values())[1:], ranks]
        for (node, first), last in zip(first_rank.items(), last_rank, strict=True):
            begin, end = first * every * len(trees) // ranks, last * every * len(trees) // ranks
            for i in range(begin // every, math.ceil(end / every)):
                if trees[i].node != node:
                    own = (max(begin - i * every, 0), min(end - i * every, every))
                    yield self.network.send(trees[i].node, node, self._needed_bytes(trees[i].parts, own))

    def _needed_bytes(self, parts: Sequence[Part], rows: tuple[int, int]) -> float:
        """Bytes of the parts of a tree that hold the states of some rows, their children, or the conditioning."""
        if rows == (0, self.schedule.rows):
            return sum(map(self._bytes, parts))
        needed = nodes_of_rows(self.schedule, *rows)
        return sum(self._bytes(part) for part in parts if part.first or np.isin(part.nodes, needed).any())

    def _bytes(self, part: Part) -> float:
        return len(part.nodes) * self.costs.state_bytes + part.first * self.costs.conditioning_bytes

    def _publish(self) -> Steps:
        seconds = 0.0 if self.colocated else self.costs.weights_bytes / self.costs.put
        self.spent["publishing"] += seconds
        yield self.env.timeout(seconds + 2 * self.costs.latency)
        self.newest += 1

    def _weights_on(self, node: int, version: int) -> simpy.Event:
        """The arrival of a version on a node: one copy, from the node of rank 0, for all of its workers."""
        if (node, version) not in self.on_node:
            source = self.cluster.rank_node(0, self.colocated)
            self.on_node[node, version] = self.network.send(source, node, self.costs.weights_bytes)
        return self.on_node[node, version]

    # What is counted ----------------------------------------------------------------------------------------------

    def _at_most(self, name: str, count: int) -> None:
        self.outcome.most[name] = max(self.outcome.most[name], count)

    def _work_done(self) -> dict[str, float]:
        """Seconds until now, by part; of many processes, their mean."""
        workers = self.cluster.workers
        return {
            "rollout": self.spent["rollout"] / workers,
            "learner": self.spent["learner"],
            "rewards": _most(replica.model for replicas in self.models for replica in replicas),
            "controller": self.controller.busy,
            "network": _most([*self.network.out, *self.network.into]),
            "weights": self.spent["weights"] / workers,
            "back-pressure": self.spent["back-pressure"] / workers,
            "states": self.spent["states"],
            "publishing": self.spent["publishing"],
        }


def _most(lines: Iterable[Line]) -> float:
    return max((line.busy for line in lines), default=0.0)


@lru_cache(maxsize=4096)
def nodes_of_rows(schedule: Schedule, begin: int, end: int) -> IntArray:
    """The parents of some of a tree's rows, which are in the order of parents, and their trained children."""
    children = np.flatnonzero(schedule.trained)
    parents = np.unique(schedule.parent[children])[begin:end]
    return np.concatenate([parents, children[np.isin(schedule.parent[children], parents)]])
