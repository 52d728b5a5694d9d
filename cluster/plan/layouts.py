"""The layouts that a run could have on some GPUs: each simulated, those whose memory doesn't fit left out."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...proto.settings_errors import changed_settings
from .costs import Cluster, Costs, given_pools
from .simulation import Outcome, simulate

ITERATIONS = 4
"""Number of iterations that are simulated. The first and the last aren't like the others, and aren't counted."""
WORKERS_AROUND = 4
"""Numbers of workers below and above the balance of sampling and learning that are tried."""
SHARED_GPU = 0.15
"""GPUs of a reward model's replica that shares one with another process."""
MIN_CPUS = 0.1
"""CPUs that a worker or rank reserves at least where processes share cores."""
REPLICAS = (1, 2, 4, 8)
MIN_GAIN = 0.01
"""Share of an iteration that more replicas must save."""

CostsOf = Callable[["Layout"], Costs]
Misfit = Callable[[RunSettings], str | None]
"""The reason for which a run with these settings doesn't fit the GPUs' memory; None if it does."""


@dataclass(frozen=True)
class Layout:
    """Which processes there are, and which GPUs they have."""

    placement: str
    workers: int
    """Rollout workers; with colocated placement the ranks."""
    ranks: int
    staleness: int = 0
    replicas: int = 1
    """Replicas of each reward model that has GPUs."""
    share: float = 0.0
    """GPUs of a replica; 0 where reward models have none."""
    beside: bool = False
    """Whether reward models share the GPUs of what samples."""

    @property
    def cluster(self) -> Cluster:
        """The workers and ranks that are simulated; replicas are those of the settings' pools."""
        return Cluster(self.workers, self.ranks)

    @property
    def text(self) -> str:
        """The layout in words."""
        parts = [_number(self.ranks, "rank")]
        if self.placement == "separate":
            parts.insert(0, _number(self.workers, "worker"))
        if self.share:
            parts.append(_number(self.replicas, "replica") + " beside" * self.beside)
        return f"{self.placement}, {' + '.join(parts)}" + ", staleness 1" * self.staleness

    def changes(self, settings: RunSettings, resource: str | None = "gpus") -> dict[str, Any]:
        """The settings of a recipe that make it so, by their dotted names. `resource` is what processes reserve of a
        device: gpus, cpus, or what the recipe says (None)."""
        left = round(1 - self.share * len(gpu_rewards(settings)), 2) if self.beside else 1
        samples = "learner" if self.placement == "colocated" else "rollout_workers"
        own: dict[str, Any] = {"execution": "ray", "placement": self.placement, "staleness": self.staleness}
        if self.placement == "separate":
            own |= {"pools.rollout_workers.count": self.workers, "pools.rollout_workers.max_count": None}
        own |= {"pools.learner.count": self.ranks}
        if resource is None:
            return own
        pools = ("learner", "rollout_workers") if self.placement == "separate" else ("learner",)
        if resource == "cpus":  # as many processes as cores, on which there must be room for reward models too
            taken = sum((pool.cpus or 0) * pool.replicas for pool in given_pools(settings).values())
            each = 1 - taken / (self.ranks + self.workers * (self.placement == "separate"))
            return own | {f"pools.{pool}.cpus": max(math.floor(100 * each) / 100, MIN_CPUS) for pool in pools}
        for pool in pools:
            own[f"pools.{pool}.{resource}"] = left if pool == samples else 1
        for model in gpu_rewards(settings):
            pool = f"pools.rewards.{model}"
            own |= {f"{pool}.replicas": self.replicas, f"{pool}.max_replicas": None, f"{pool}.{resource}": self.share}
        return own

    def apply(self, settings: RunSettings, resource: str | None = "gpus") -> RunSettings:
        """The settings of a run with this layout. Raises InputError for one that a run can't have."""
        return changed_settings(settings, self.changes(settings, resource))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count > 1)


def gpu_rewards(settings: RunSettings) -> list[str]:
    """Reward models to which the recipe gives a GPU or a share of one."""
    return [model for model, pool in given_pools(settings).items() if pool.gpus]


def layouts(settings: RunSettings, gpus: int, balance: float, part: float = SHARED_GPU) -> Iterator[Layout]:
    """Layouts that use all of so many GPUs. `balance` is the share of a run's work that is sampling, and `part` what a
    replica takes of a GPU that it shares."""
    for replicas, share, beside in _reward_places(settings, gpus, part):
        left = gpus - (replicas if share and not beside else 0)
        if left:
            yield Layout("colocated", left, left, 0, replicas, share, beside)
        middle = round(left * balance)
        for workers in range(max(1, middle - WORKERS_AROUND), min(left - 1, middle + WORKERS_AROUND) + 1):
            if not beside or replicas <= workers:
                for staleness in (0, 1):
                    yield Layout("separate", workers, left - workers, staleness, replicas, share, beside)


def _reward_places(settings: RunSettings, gpus: int, part: float) -> Iterator[tuple[int, float, bool]]:
    """Replicas of each reward model, GPUs of each replica, and whether they share GPUs with what samples."""
    if not (models := len(gpu_rewards(settings))):
        yield 1, 0.0, False
        return
    for replicas in (count for count in REPLICAS if count <= gpus):
        if models * part < 1:
            yield replicas, part, True
        yield replicas, math.floor(100 / models) / 100, False  # a replica of each model on a GPU


@dataclass(frozen=True)
class Planned:
    """A layout, and the seconds that its simulation gives."""

    layout: Layout
    settings: RunSettings
    seconds: float
    """Seconds of an iteration."""
    phases: dict[str, float]
    """Phase -> seconds of an iteration; phases overlap."""
    gains: dict[str, float] = field(default_factory=dict)
    """Part -> factor by which an iteration is shorter if that part is twice as fast."""

    @property
    def limit(self) -> str:
        """The part that limits most."""
        part = max(self.gains, key=lambda part: self.gains[part])
        return f"{part} ({self.gains[part]:.2f})"


@dataclass
class Plan:
    """The best layouts, and why faster ones were left out."""

    best: list[Planned] = field(default_factory=list)
    dropped: dict[str, list[Layout]] = field(default_factory=dict)
    """Reason -> layouts."""
    fastest: RunSettings | None = None
    """Settings with the fastest of the layouts that don't fit the memory."""


def plan(
    settings: RunSettings,
    candidates: Sequence[Layout],
    costs_of: CostsOf,
    misfit: Misfit = lambda settings: None,
    sized: Callable[[RunSettings], RunSettings] = lambda settings: settings,
    *,
    resource: str | None = "gpus",
    count: int = 5,
    advance: Callable[[], object] = lambda: None,
) -> Plan:
    """The best `count` of the candidates, each with numbers for its sizes from `sized`. `advance` is called after each
    simulation."""
    made, simulated = Plan(), []
    for layout in candidates:
        try:
            changed = sized(layout.apply(settings, resource))
            simulated.append(predict(layout, changed, costs_of(layout)))
        except InputError as error:
            made.dropped.setdefault(str(error), []).append(layout)
        advance()
    for planned in sorted(_fewest_replicas(simulated), key=lambda own: (round(own.seconds, 3), own.layout.staleness)):
        if len(made.best) == count:
            break
        if reason := misfit(planned.settings):
            made.dropped.setdefault(reason, []).append(planned.layout)
            made.fastest = made.fastest or planned.settings
            continue
        gains = {
            part: planned.seconds / predict(planned.layout, planned.settings, faster).seconds
            for part, faster in costs_of(planned.layout).twice_as_fast().items()
        }
        made.best.append(Planned(planned.layout, planned.settings, planned.seconds, planned.phases, gains))
    return made


def _fewest_replicas(simulated: Sequence[Planned]) -> Iterator[Planned]:
    """Leave out layouts with more replicas than another one that is nearly as fast and otherwise the same."""
    alike: defaultdict[Layout, list[Planned]] = defaultdict(list)
    for planned in simulated:
        layout = replace(planned.layout, replicas=0)
        if layout.share and not layout.beside:  # more replicas leave fewer ranks
            layout = replace(layout, ranks=0, workers=layout.workers * (layout.placement == "separate"))
        alike[layout].append(planned)
    for group in alike.values():
        fastest = min(planned.seconds for planned in group)
        nearly = [planned for planned in group if planned.seconds <= (1 + MIN_GAIN) * fastest]
        yield min(nearly, key=lambda planned: planned.layout.replicas)


def predict(layout: Layout, settings: RunSettings, costs: Costs) -> Planned:
    """A layout's seconds, by a simulation of some iterations."""
    outcome: Outcome = simulate(settings, costs, layout.cluster, ITERATIONS)
    seconds = fmean(outcome.seconds[1:-1])
    worked = outcome.worked
    phases = {
        "sampling": worked["rollout"],
        "scoring": worked["rewards"],
        "learning": worked["learner"],
        "weights": worked["weights"] + worked["publishing"],
    }
    return Planned(layout, settings, seconds, phases)


def balance_of(settings: RunSettings, costs: Costs, rows: float) -> float:
    """The share of sampling in the seconds that a tree takes of all processes."""
    schedule = settings.schedule.build()
    sampling = schedule.forward_passes * costs.forward_row + schedule.leaves * costs.decode_picture
    return sampling / (sampling + rows * costs.learn_row or 1.0)
