"""A discrete-event simulation of a run on Ray: who waits for whom, with costs in place of computations.

It follows `cluster/on_ray/controller.py`: tasks go to free workers, parts wait for the controller, for scores and for
the learner, and back-pressure holds workers up. The recipe is that of a real run. Nothing is random: the same arguments
give the same outcome.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from ...proto.settings import RunSettings
from ...proto.tree import Window
from ..run.cuts import MAX_UNREAD_PARTS, groups, windows
from .broadcast import passed_on
from .cores import Cores
from .costs import Cluster, Costs, Transport, given_pools, training_models
from .queues import Line, Network, Replica, Steps
from .rows import learner_rows
from .stretches import Part, Stretch, nodes_of_rows, stretches


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
    worked: dict[str, float] = field(default_factory=dict)
    """Seconds of an iteration that each part worked or waited, means over all iterations."""
    waiting: dict[str, float] = field(default_factory=dict)
    """Share of that time that workers waited for weights and for back-pressure (means), and the learner for states and
    for weights to be put into the object store."""
    counts: Counter[str] = field(default_factory=Counter)
    """Parts, pictures scored (by each model), trees learned; bytes sent."""
    most: Counter[str] = field(default_factory=Counter)
    """The most at once: parts unread of a worker, parts in scoring, trees in flight."""
    batches: list[int] = field(default_factory=list)
    """Pictures of each batch that was scored."""


def simulate(
    settings: RunSettings,
    costs: Costs,
    cluster: Cluster | None = None,
    iterations: int = 3,
    transport: Transport | None = None,
) -> Outcome:
    """The outcome of so many iterations of a recipe.

    Of the edges that pruning leaves, `costs.trained_share` have an advantage.
    """
    return Simulation(settings, costs, cluster or Cluster.of(settings), iterations, transport or Transport()).outcome


class Simulation:
    """One run."""

    def __init__(
        self, settings: RunSettings, costs: Costs, cluster: Cluster, iterations: int, transport: Transport
    ) -> None:
        self.settings, self.costs, self.cluster, self.iterations = settings, costs, cluster, iterations
        self.transport = transport
        self.colocated = settings.placement == "colocated"
        self.schedule, self.rows = settings.schedule.build(), costs.trained_share * learner_rows(settings)
        self.by_leaves = settings.learner.learns_from_leaves
        self.shared = self.schedule.leaves if self.by_leaves else self.schedule.rows  # of a tree, among the ranks
        self.env = env = simpy.Environment()
        nodes = cluster.nodes(self.colocated)
        self.network = Network(env, nodes, costs.network)
        self.cores = Cores(env, costs.cores, costs.slowdown, costs.standing)
        self.controller = Line(env, self.cores)
        self.free: simpy.Store = simpy.Store(env)
        self.free.items.extend(range(cluster.workers))
        self.in_scoring = simpy.Resource(env, settings.rollout.max_parts_in_scoring)
        self.room = simpy.Container(env, settings.max_trees_ahead, settings.max_trees_ahead)
        pools = given_pools(settings)
        self.models = [
            [
                Replica(env, n % nodes, pools[model], self.cores, costs.score_batch, costs.scoring(model))
                for n in range(cluster.replicas or pools[model].replicas)
            ]
            for model in training_models(settings)
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
        self.outcome.worked = {name: spent / self.iterations for name, spent in done.items()}
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
            seconds = sum(map(costs.forward_seconds, stretch.forwards))
            seconds += stretch.pictures * costs.decode_picture
            since = self.env.now
            yield self.cores.work(seconds)
            self.spent["rollout"] += self.env.now - since
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
        cut = list(windows(self.settings, 0))
        ahead: simpy.Process | None = None
        for window, following in zip(cut, [*cut[1:], None], strict=True):
            yield self.env.all_of(self._ready(iteration, window))
            sent = (yield ahead) if ahead else None
            yield from self._told(window, first=sent is None)
            since = self.env.now
            yield self.env.all_of(sent if sent is not None else self._sent(iteration, window))
            self.spent["states"] += self.env.now - since
            worked = self.env.process(self._work_on(window))
            if following and self.transport.fetch_ahead:
                ahead = self.env.process(self._fetch_ahead(iteration, following, worked))
            yield worked
            for number in window.trees:
                iteration.trees[number] = GrowingTree()  # its parts are forgotten
            yield self.room.put(len(window.trees))

    def _ready(self, iteration: Iteration, window: Window[int]) -> list[simpy.Event]:
        """What must have happened before a window is learned from: its trees are scored, or all of them."""
        return iteration.ready[window.trees[0] : None if self.colocated else window.trees[-1] + 1]

    def _told(self, window: Window[int], *, first: bool) -> Steps:
        """A message about a window to all ranks, for which it is written down the first time."""
        written = self.costs.window_tree * len(window.trees) * first
        yield self.controller.serve(written + self.costs.window_rank * self.cluster.ranks)
        yield self.env.timeout(self.costs.latency)

    def _fetch_ahead(
        self, iteration: Iteration, window: Window[int], worked: simpy.Event
    ) -> Generator[simpy.Event, Any, list[simpy.Event] | None]:
        """Have all ranks fetch the states of a window that is ready before the one before it is `worked` on. Returns
        their arrivals, or None."""
        ready = self.env.all_of(self._ready(iteration, window))
        yield ready | worked
        if worked.processed:
            return None
        yield from self._told(window, first=True)
        return self._sent(iteration, window)

    def _work_on(self, window: Window[int]) -> Steps:
        """The ranks' work on a window whose states they have."""
        costs, ranks = self.costs, self.cluster.ranks
        rows = math.ceil(self.rows * len(window.trees) / ranks)  # of the largest share
        seconds = costs.learn_seconds(rows, self.settings.learner.rows_per_micro_batch)
        seconds += window.closes_update * self.settings.learner.passes * costs.update
        since = self.env.now
        yield self.cores.work(seconds, ranks)
        self.spent["learner"] += self.env.now - since
        yield self.env.timeout(costs.latency)
        self.outcome.counts["trees"] += len(window.trees)

    def _sent(self, iteration: Iteration, window: Window[int]) -> list[simpy.Event]:
        """The arrivals of a window's states at the nodes of the ranks."""
        return list(self._sends([iteration.trees[number] for number in window.trees]))

    def _sends(self, trees: Sequence[GrowingTree]) -> Iterator[simpy.Event]:
        """Parts with a row (or leaf) of the ranks of each node, once per node; those of a rank follow one another."""
        every, ranks = self.shared, self.cluster.ranks
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

    def _needed_bytes(self, parts: Sequence[Part], own: tuple[int, int]) -> float:
        """Bytes of the parts of a tree that hold the states of some rows and their children, or those of some leaves,
        or the conditioning."""
        if own == (0, self.shared):
            return sum(map(self._bytes, parts))
        leaves = np.arange(self.schedule.first_node[-2], self.schedule.nodes)
        needed = leaves[slice(*own)] if self.by_leaves else nodes_of_rows(self.schedule, *own)
        return sum(self._bytes(part) for part in parts if part.first or np.isin(part.nodes, needed).any())

    def _bytes(self, part: Part) -> float:
        return len(part.nodes) * self.costs.state_bytes + part.first * self.costs.conditioning_bytes

    def _publish(self) -> Steps:
        seconds = 0.0 if self.colocated else self.costs.weights_bytes / self.costs.put
        self.spent["publishing"] += seconds
        yield self.env.timeout(seconds + 2 * self.costs.latency)
        self.newest += 1
        if self.transport.pass_on and not self.colocated:
            self._pass_on(self.newest)

    def _pass_on(self, version: int) -> None:
        """Send a version along the nodes of the workers."""
        source, costs = self.cluster.rank_node(0, self.colocated), self.costs
        nodes = dict.fromkeys([source, *map(self.cluster.worker_node, range(self.cluster.workers))])
        arrivals = passed_on(
            self.env, self.network, list(nodes), costs.weights_bytes, self.controller, costs.window_rank
        )
        self.on_node |= {(node, version): arrival for node, arrival in arrivals.items()}

    def _weights_on(self, node: int, version: int) -> simpy.Event:
        """The arrival of a version on a node, for all of its workers. What isn't passed on is fetched from rank 0's."""
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
