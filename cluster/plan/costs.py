"""What a simulated run costs, and the cluster that it runs on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from ...proto.settings import RewardPoolSettings, RewardSettings, RunSettings
from ...reward_service.scorers import reward_models

Key = TypeVar("Key", int, str)
LIGHT_CPUS = 0.1
"""CPUs of a replica whose rewards are functions, or come from other services."""


@dataclass(frozen=True)
class Costs:
    """Costs of a simulated run: seconds, bytes, and bytes per second. Whatever isn't given costs nothing."""

    forward: float = 0.0
    """Seconds of a rollout's forward pass, whatever its rows."""
    forward_row: float = 0.0
    forward_calls: Mapping[int, float] = field(default_factory=dict)
    """Rows -> seconds of a forward pass, where they were measured, in place of `forward` and `forward_row`."""
    decode_picture: float = 0.0
    score_batch: float = 0.0
    """Seconds of a call of a reward model, whatever its pictures."""
    score_picture: float = 0.0
    score_pictures: Mapping[str, float] = field(default_factory=dict)
    """Reward model -> seconds of a picture, where models differ, in place of `score_picture`."""
    micro_batch: float = 0.0
    """Seconds of a micro-batch, forward and backward, whatever its rows; the reduction of its gradients included."""
    learn_row: float = 0.0
    learn_calls: Mapping[int, float] = field(default_factory=dict)
    """Rows -> seconds of a micro-batch, where they were measured, in place of `micro_batch` and `learn_row`."""
    trained_share: float = 1.0
    """Share of the unpruned rows that have an advantage; the learner skips the others."""
    update: float = 0.0
    """Seconds of an optimizer step."""
    load_weights: float = 0.0
    """Seconds in which a worker takes over weights that lie on its node."""

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

    cores: int = 0
    """Cores that all processes share; 0 if each has a device of its own."""
    slowdown: float = 1.0
    """How many times as long everything takes while all cores are busy."""
    standing: float = 0.0
    """Number of cores that Ray's own processes take while all are busy."""

    part_message: float = 0.0
    """Seconds of the controller for a part of a tree, from its arrival to the request to the rewards."""
    score_reply: float = 0.0
    """Seconds of the controller for a reward model's reply."""
    window_tree: float = 0.0
    """Seconds of the controller to write down a tree of a window, once for all learner ranks."""
    window_rank: float = 0.0
    """Seconds of the controller to hand a window to one learner rank, or a piece of the weights to a node."""

    def forward_seconds(self, rows: int) -> float:
        """Seconds of a rollout's forward pass."""
        return _call(rows, self.forward, self.forward_row, self.forward_calls)

    def learn_seconds(self, rows: float, most: int) -> float:
        """Seconds of so many rows in micro-batches of at most `most`."""
        whole, rest = divmod(rows, most)
        seconds = whole * _call(most, self.micro_batch, self.learn_row, self.learn_calls)
        return seconds + (_call(rest, self.micro_batch, self.learn_row, self.learn_calls) if rest else 0)

    def scoring(self, model: str) -> float:
        """Seconds of a reward model for one picture."""
        return self.score_pictures.get(model, self.score_picture)

    def twice_as_fast(self) -> dict[str, "Costs"]:
        """Part of a run -> the costs if that part were twice as fast."""

        def halved(*names: str) -> Costs:
            return replace(self, **{name: getattr(self, name) / 2 for name in names})

        def half(seconds: Mapping[Key, float]) -> dict[Key, float]:
            return {key: own / 2 for key, own in seconds.items()}

        scores, forwards, learns = half(self.score_pictures), half(self.forward_calls), half(self.learn_calls)
        return {
            "rollout": replace(halved("forward", "forward_row", "decode_picture"), forward_calls=forwards),
            "learner": replace(halved("micro_batch", "learn_row", "update"), learn_calls=learns),
            "rewards": replace(halved("score_batch", "score_picture"), score_pictures=scores),
            "controller": halved("part_message", "score_reply", "window_tree", "window_rank"),
            "network": replace(self, network=2 * self.network),
            "object store": replace(self, put=2 * self.put, load_weights=self.load_weights / 2),
        }


def _call(rows: float, call: float, row: float, measured: Mapping[int, float]) -> float:
    """Seconds of a call: as measured, where numbers of rows between are interpolated, or of its parts."""
    if not measured:
        return call + rows * row
    counts = sorted(measured)
    beyond = max(rows / counts[-1], 1.0)
    return beyond * float(np.interp(rows, counts, [measured[count] for count in counts]))


@dataclass(frozen=True)
class Transport:
    """How states and weights travel. The other ways are for comparison: no run has them."""

    fetch_ahead: bool = True
    """Whether the states of the learner's next window are fetched while it works on the present one."""
    pass_on: bool = True
    """Whether nodes pass on pieces of the weights, and not every node fetches all from that of rank 0."""


@dataclass(frozen=True)
class Cluster:
    """Where processes run. Workers come first, then learner ranks, then replicas; colocated ranks are the workers."""

    workers: int
    ranks: int
    replicas: int | None = None
    """Number of replicas of every reward model, in place of those of its pool."""
    per_node: int = 8
    """Workers and ranks on a node; replicas lie on the nodes one by one."""

    @classmethod
    def of(cls, settings: RunSettings, per_node: int = 8) -> "Cluster":
        """The pools of a recipe."""
        pools = settings.pools
        colocated = settings.placement == "colocated"
        workers = pools.learner.count if colocated else pools.rollout_workers.count
        return cls(workers, pools.learner.count, per_node=per_node)

    def worker_node(self, worker: int) -> int:
        """Number of the node that a rollout worker is on."""
        return worker // self.per_node

    def rank_node(self, rank: int, colocated: bool) -> int:
        """Number of the node that a learner rank is on."""
        return (rank if colocated else self.workers + rank) // self.per_node

    def nodes(self, colocated: bool) -> int:
        """Number of nodes with workers or ranks."""
        return self.rank_node(self.ranks - 1, colocated) + 1


def given_pools(settings: RunSettings) -> dict[str, RewardPoolSettings]:
    """Reward model -> its pool, as the recipe gives it or by default, with the CPUs of each replica."""
    pools = {}
    for model, rewards in reward_models(settings.rewards).items():
        pool = settings.pools.of_reward(model)
        light = all(reward.function or reward.url or reward.judge for reward in rewards.values())
        cpus = pool.cpus if pool.cpus is not None else LIGHT_CPUS if light else 1.0
        pools[model] = pool.model_copy(update={"cpus": cpus})
    return pools


def training_models(settings: RunSettings) -> dict[str, dict[str, RewardSettings]]:
    """Reward model -> the rewards that it gives; without models that score in evaluations only."""
    training = settings.training_rewards
    return {
        name: given for name, given in reward_models(settings.rewards).items() if not training.keys().isdisjoint(given)
    }
