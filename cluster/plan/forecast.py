"""Seconds of an iteration of a recipe as it stands: on Ray by a simulation, in one process as a sum."""

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

from ...proto.settings import RunSettings
from .costs import Cluster, Costs, training_models
from .layouts import ITERATIONS, Layout, Planned, predict
from .prices import Prices
from .simulation import simulate

MESSAGES = ("latency", "part_message", "score_reply", "window_tree", "window_rank", "weights_bytes", "load_weights")
NO_MESSAGES: dict[str, Any] = {"put": math.inf, "network": math.inf} | dict.fromkeys((*MESSAGES, "standing"), 0.0)
"""Costs that a run in one process hasn't."""


def forecast(settings: RunSettings, prices: Prices) -> Planned:
    """The seconds of an iteration, with those of its phases."""
    if settings.execution == "in_process":
        return _in_process(settings, prices.costs(Cluster(1, 1)))
    cluster = Cluster.of(settings)
    layout = Layout(settings.placement, cluster.workers, cluster.ranks, settings.staleness)
    colocated = settings.placement == "colocated"
    return predict(layout, settings, prices.costs(cluster, colocated=colocated))


def _in_process(settings: RunSettings, costs: Costs) -> Planned:
    """One phase after the other: as on one colocated rank, but that it also scores, a request for each part."""
    layout = Layout("colocated", 1, 1)
    alone = settings.model_copy(update={"placement": "colocated"})
    silent = replace(costs, **NO_MESSAGES, score_batch=0.0, score_picture=0.0, score_pictures={})
    outcome = simulate(alone, silent, layout.cluster, ITERATIONS)
    parts = outcome.counts["parts"] / ITERATIONS
    leaves = settings.prompts.per_iteration * settings.schedule.build().leaves
    scoring = sum(parts * costs.score_batch + leaves * costs.scoring(model) for model in training_models(settings))
    phases = {"sampling": outcome.worked["rollout"], "scoring": scoring, "learning": outcome.worked["learner"]}
    return Planned(layout, settings, fmean(outcome.seconds[1:-1]) + scoring, phases)
