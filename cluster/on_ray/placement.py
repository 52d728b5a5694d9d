"""Which pools a run needs, and whether the cluster has room for them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from ...proto.errors import InputError
from ...proto.settings import RewardPoolSettings, RewardSettings, RunSettings
from ...reward_service.judge_limits import longest_request
from ...reward_service.remote import longest
from ...reward_service.scorers import reward_models
from ..plan.costs import given_pools
from .internals import free_resources


@dataclass(frozen=True)
class Demand:
    """The demand of one pool: a number of processes, each with these resources on a node with these labels."""

    pool: str
    """The setting that asks for it."""
    count: int
    each: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Node:
    """A node of the cluster and what is free on it."""

    name: str
    free: Mapping[str, float]
    labels: Mapping[str, str]


def reward_pools(settings: RunSettings) -> dict[str, RewardPoolSettings]:
    """Model -> its pool. No request ends before all attempts at asking another service."""
    pools, models = {}, reward_models(settings.rewards)
    for model, pool in given_pools(settings).items():
        attempts = (_seconds_of_attempts(reward, pool) for reward in models[model].values())
        pools[model] = pool.model_copy(update={"timeout_seconds": max(pool.timeout_seconds, *attempts)})
    return pools


def demands(settings: RunSettings) -> list[Demand]:
    """The demands of all pools of the run at its start."""
    pools = settings.pools
    learner, workers = pools.learner, pools.rollout_workers
    fixed = [Demand("pools.learner", learner.count, learner.demand(), learner.labels)]
    if settings.placement == "separate":
        fixed.append(Demand("pools.rollout_workers", workers.count, workers.demand(), workers.labels))
    return [*fixed, *reward_demands(settings)]


def reward_demands(settings: RunSettings) -> list[Demand]:
    """The demands of the run's reward models."""
    pools = reward_pools(settings)
    return [
        Demand(f"pools.rewards.{model}", pool.replicas, pool.demand(), pool.labels) for model, pool in pools.items()
    ]


def free_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to, and what is free on them."""
    free = free_resources()
    return [
        Node(node["NodeID"], free.get(node["NodeID"], {}), node.get("Labels", {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


def check_room(wanted: Sequence[Demand], nodes: Sequence[Node]) -> None:
    """Raises InputError, naming the pool and what it lacks, if the pools can't be placed on what is free now.

    Largest processes first, each on the first node that has room.
    """
    free = {node.name: dict(node.free) for node in nodes}
    for demand in sorted(wanted, key=lambda demand: -sum(demand.each.values())):
        suited = [node for node in nodes if demand.labels.items() <= node.labels.items()]
        if not suited:
            there = [label for node in nodes for label in node.labels.items()]
            raise InputError(
                f"{demand.pool} needs nodes labelled {_shown(demand.labels.items())}; of {len(nodes)} nodes none is "
                f"(labels there: {_shown(there) or 'none'})"
            )
        for placed in range(demand.count):
            node = next((node for node in suited if _fits(demand.each, free[node.name])), None)
            if node is None:
                raise InputError(
                    f"{demand.pool} needs {demand.count} x {_text(demand.each)}; there is room for {placed}: after the "
                    f"other pools, {_lack(demand.each, [free[node.name] for node in suited])}"
                )
            for name, amount in demand.each.items():
                free[node.name][name] -= amount


def wait_for_room(wanted: Sequence[Demand], seconds: float) -> bool:
    """Wait until the cluster has room for all pools at once; returns whether it has.

    What is waited for is demand that Ray's autoscaler sees.
    """
    processes = [demand for demand in wanted for _ in range(demand.count) if demand.each]
    if not processes:
        return True
    group = ray.util.placement_group(
        [dict(demand.each) for demand in processes],
        bundle_label_selector=[dict(demand.labels) for demand in processes],
    )
    try:
        return bool(group.wait(seconds))
    finally:
        ray.util.remove_placement_group(group)


def _seconds_of_attempts(reward: RewardSettings, pool: RewardPoolSettings) -> float:
    """Seconds that a request to the service behind a reward may take; 0 if there is none."""
    if reward.judge:
        return longest_request(reward.judge, reward.timeout_seconds, pool.batch_pictures)
    return longest(reward.timeout_seconds) if reward.url else 0.0


def _shown(labels: Iterable[tuple[str, str]]) -> str:
    return ", ".join(sorted({f"{name}={value}" for name, value in labels}))


def _fits(each: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(name, 0.0) >= amount - 1e-6 for name, amount in each.items())


def _text(each: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in each.items()) or "nothing"


def _lack(each: Mapping[str, float], free: Sequence[Mapping[str, float]]) -> str:
    nodes = "the node has" if len(free) == 1 else f"no one of {len(free)} nodes has"
    most = [f"{max(node.get(name, 0.0) for node in free):g} {name}" for name in each]
    return f"{nodes} only {', '.join(most)} free" if len(free) == 1 else f"{nodes} it (at most {', '.join(most)} free)"
