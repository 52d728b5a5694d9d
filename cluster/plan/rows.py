"""What of a tree the learner takes forward and backward: as method, pruning and passes have it, and as a run had it."""

from functools import lru_cache
from math import comb
from pathlib import Path

import numpy as np

from ...learner.pruning import BoolArray, kept_edges
from ...proto.errors import InputError
from ...proto.schedule import Schedule
from ...proto.settings import PruningSettings, RunSettings
from ..run.folder import RunFolder

COUNTED_ITERATIONS = 100
"""Iterations of a longer run whose rows are counted, evenly spaced."""


def trained_edges(settings: RunSettings, schedule: Schedule) -> BoolArray:
    """Whether the edge into each node of a tree is trained on, bool [nodes], once pruning has begun.

    Which edges width pruning keeps depends on the scores, how many doesn't: any scores do.
    """
    pruning = settings.pruning
    first = max((part.first_iteration for part in (pruning.width, pruning.depth) if part), default=1)
    return _kept(schedule, pruning, first)


def learner_rows(settings: RunSettings) -> float:
    """Expected rows of a tree in an iteration's passes, a mean over the run's iterations (of a long run, over some of
    them). None is left out for an advantage of zero."""
    iterations = min(settings.iterations, COUNTED_ITERATIONS)
    return sum(rows_of(settings, int(i)) for i in np.linspace(1, settings.iterations, iterations)) / iterations


def rows_of(settings: RunSettings, iteration: int) -> float:
    """Expected rows of a tree in one iteration, counted from 1, if all orders of the leaves' scores are alike."""
    learner = settings.learner
    schedule = settings.schedule.build(iteration if settings.schedule.varies else 1, settings.seed)
    if learner.learns_from_leaves:
        return learner.passes * schedule.leaves * learner.nft.noise_levels
    return learner.passes * _expected_rows(schedule, settings.pruning, iteration)


def share_of(run: Path, planned: RunSettings) -> float:
    """The share that a run has learned from of the rows that pruning left: the others had no advantage.

    Raises InputError for a folder of no run, for a run without an iteration, and for one with other rewards than what
    is `planned`.
    """
    folder = RunFolder.open(run)
    settings, lines = folder.settings, folder.lines("metrics")
    there, here = (sorted(name for name, own in each.rewards.items() if own.weight) for each in (settings, planned))
    if there != here:
        raise InputError(f"--from {run}: its rewards are {', '.join(there)}, and those of the recipe {', '.join(here)}")
    if not lines:
        raise InputError(f"--from {run}: the run has no finished iteration yet")
    if not all(isinstance(line.get("rows"), int) for line in lines):
        raise InputError(f"--from {run}: its metrics.jsonl is damaged: not every line has the number of its rows")
    trees = settings.prompts.per_iteration
    return sum(line["rows"] for line in lines) / sum(trees * rows_of(settings, line["iteration"]) for line in lines)


def _kept(schedule: Schedule, pruning: PruningSettings, iteration: int) -> BoolArray:
    return kept_edges(np.random.default_rng(0).random(schedule.nodes), schedule, pruning, iteration)


@lru_cache(maxsize=4096)
def _expected_rows(schedule: Schedule, pruning: PruningSettings, iteration: int) -> float:
    """Parents of kept edges. Only those of the last split, where `extreme` prunes its edges too, depend on the scores:
    of two chains that stay, both may have one parent.

    Of L leaves K stay, and a parent of c of them stays unless all c are among the others:
    L / c * (1 - binomial(L - c, K) / binomial(L, K)).
    """
    kept, width = _kept(schedule, pruning, iteration), pruning.width
    parents = np.unique(schedule.parent[kept])
    splits = [depth for depth, step in enumerate(schedule.steps) if step.children > 1]
    if not (width and width.applies(iteration) and width.mode == "extreme" and splits) or width.keep_last_split:
        return len(parents)
    at_split = schedule.depth[parents] == splits[-1]
    if not at_split.any():
        return len(parents)
    leaves, children = schedule.leaves, schedule.steps[splits[-1]].children
    stay = min(2 * width.keep, leaves)
    expected = leaves / children * (1 - comb(leaves - children, stay) / comb(leaves, stay))
    return float((~at_split).sum() + expected)
