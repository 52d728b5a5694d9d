"""What of a tree the learner takes forward and backward, as the method, pruning and passes have it."""

import numpy as np

from ...learner.pruning import BoolArray, kept_edges
from ...proto.schedule import Schedule
from ...proto.settings import RunSettings


def trained_edges(settings: RunSettings, schedule: Schedule) -> BoolArray:
    """Whether the edge into each node of a tree is trained on, bool [nodes], once pruning has begun.

    Which edges width pruning keeps depends on the scores, how many doesn't: any scores do.
    """
    pruning = settings.pruning
    first = max((part.first_iteration for part in (pruning.width, pruning.depth) if part), default=1)
    return kept_edges(np.random.default_rng(0).random(schedule.nodes), schedule, pruning, first)


def learner_rows(settings: RunSettings) -> int:
    """Rows of a tree in an iteration's passes, of which none is left out for an advantage of zero."""
    schedule, learner = settings.schedule.build(1, settings.seed), settings.learner
    if learner.objective == "nft":
        return learner.passes * schedule.leaves * learner.nft.noise_levels
    return learner.passes * len(np.unique(schedule.parent[trained_edges(settings, schedule)]))
