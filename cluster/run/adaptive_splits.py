"""The schedule of each iteration: the recipe's, or one whose splits move to where siblings have differed most."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...learner.advantages import FLAT_SPREAD
from ...proto.errors import InputError
from ...proto.schedule import Schedule
from ...proto.settings import RunSettings

FILE = "branching.json"
MAX_PLACES = 100_000
"""For all splits together; a few seconds at the start of a run."""
Rewards = Mapping[str, npt.NDArray[np.float64]]


class SplitChooser:
    """Decides the schedule of every iteration, and with `schedule.adapt` learns from the rewards of its trees.

    A split is worth what its siblings differ by: the variance between the mean rewards below a parent's children, as a
    share of the variance of the tree's leaves, averaged over parents, trees and, with a decay, iterations. Of all
    places for the splits within the budget of forward passes, those with the largest sum are taken. What is known of a
    step fades while it isn't split, towards the best that is known: so every step is tried, and tried again.

    An iteration's schedule depends on what was learned up to the iteration before, or, with `staleness: 1`, the one
    before that, whatever has been learned since.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self._adapt = settings, settings.schedule.adapt
        self._pending: list[tuple[int, dict[int, float]]] = []
        """Iterations that no decision has used yet: the worth of each split step."""
        self._worth: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        """Iteration in which each step was last split."""
        self._children: list[int] = []
        if self._adapt:
            first = settings.schedule.build(1, settings.seed)
            self._children = list(first.splits.values())
            self._budget = self._adapt.forward_passes or first.forward_passes
            self._steps = first.grid_steps
            steps, count = first.grid_steps - 1, len(self._children)
            if math.comb(steps, count) > MAX_PLACES:
                raise InputError(
                    f"schedule.adapt would choose from {math.comb(steps, count)} places for {count} splits in {steps} "
                    f"steps; at most {MAX_PLACES} can be"
                )
            self._places = np.array(list(combinations(range(steps), count)))
            cheapest = self._split_at(self._places[-1], 1)
            if cheapest.forward_passes > self._budget:
                raise InputError(
                    f"schedule.adapt.forward_passes is {self._budget}; the cheapest tree with these splits takes "
                    f"{cheapest.forward_passes}"
                )

    def schedule(self, iteration: int) -> Schedule:
        """The schedule of an iteration, counted from 1. Call it for iterations in ascending order: the splits of each
        follow from the differences that `record` was given before."""
        settings = self.settings
        if not self._adapt:
            return settings.schedule.build(iteration, settings.seed)
        known = iteration - 1 - settings.staleness
        for number, worth in [entry for entry in self._pending if entry[0] <= known]:
            self._take_up(number, worth)
        self._pending = [entry for entry in self._pending if entry[0] > known]
        if not self._worth:
            return settings.schedule.build(iteration, settings.seed)
        score = np.array([self._score(step, known) for step in range(self._places.max() + 1)])
        totals = score[self._places].sum(axis=1).round(12)
        # The best first; of equals the latest, which are the cheapest. What is left at last is the cheapest of all.
        for place in np.lexsort((np.arange(len(totals)), totals))[::-1]:
            schedule = self._split_at(self._places[place], iteration)
            if schedule.forward_passes <= self._budget:
                return schedule
        return self._split_at(self._places[-1], iteration)

    @property
    def stuck(self) -> bool:
        """Whether the budget leaves the splits one place only."""
        # The last place is the cheapest, the one before it the next.
        return len(self._places) < 2 or self._split_at(self._places[-2], 1).forward_passes > self._budget

    def record(self, iteration: int, schedule: Schedule, trees: Sequence[Rewards]) -> None:
        """Take note of the rewards of an iteration's leaves, tree by tree."""
        if self._adapt:
            totals = [training_reward(self.settings, tree) for tree in trees]
            self._pending.append((iteration, sibling_variance(schedule, totals)))

    def save(self, folder: Path) -> None:
        """Write what has been learned into a checkpoint, if anything is."""
        if self._adapt:
            state = {"steps": self._steps, "pending": self._pending, "worth": self._worth, "seen": self._seen}
            (folder / FILE).write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint. One without `adapt`, or with other steps, changes nothing."""
        if self._adapt and (folder / FILE).is_file():
            state: dict[str, Any] = json.loads((folder / FILE).read_text())
            if state.get("steps", self._steps) != self._steps:
                return
            self._pending = [(number, _by_step(worth)) for number, worth in state["pending"]]
            self._worth, self._seen = _by_step(state["worth"]), _by_step(state["seen"])

    def _take_up(self, iteration: int, worth: Mapping[int, float]) -> None:
        assert self._adapt
        decay = self._adapt.decay
        for step, value in worth.items():
            before = self._worth.get(step)
            self._worth[step] = value if before is None else decay * before + (1 - decay) * value
            self._seen[step] = iteration

    def _score(self, step: int, iteration: int) -> float:
        """The estimated value of a split at `step`."""
        assert self._adapt
        best = max(self._worth.values())
        if step not in self._worth:
            return best
        trust = self._adapt.decay ** (iteration - self._seen[step])
        return trust * self._worth[step] + (1 - trust) * best

    def _split_at(self, places: Sequence[int], iteration: int) -> Schedule:
        splits = {int(place): children for place, children in zip(places, self._children, strict=True)}
        # The budget of forward passes bounds its nodes.
        changed = self.settings.schedule.model_copy(update={"splits": splits, "max_nodes": sys.maxsize})
        return changed.build(iteration, self.settings.seed)


def training_reward(settings: RunSettings, rewards: Rewards) -> npt.NDArray[np.float64]:
    """The weighted sum of the rewards of a tree's leaves, float64 [leaves]."""
    weights = {name: reward.weight for name, reward in settings.training_rewards.items()}
    return np.asarray(sum(weight * np.asarray(rewards[name]) for name, weight in weights.items()))


def sibling_variance(schedule: Schedule, trees: Sequence[npt.NDArray[np.float64]]) -> dict[int, float]:
    """Variance between the mean rewards below siblings over that of all leaves, for every grid step that splits.

    `trees` hold the reward of every leaf, float64 [leaves]. A tree with equal leaves counts as 0.
    """
    shares: dict[int, float] = {}
    for depth, step in enumerate(schedule.steps):
        if step.children > 1:
            found = []
            for leaves in trees:
                values = leaves.reshape(schedule.nodes_per_depth[depth + 1], -1).mean(axis=1)
                between = values.reshape(-1, step.children).var(axis=1, ddof=1).mean()
                total = leaves.var(ddof=1)
                found.append(between / total if total > (FLAT_SPREAD * np.abs(leaves).max()) ** 2 else 0.0)
            shares[int(schedule.levels[depth])] = float(np.mean(found))
    return shares


def _by_step(values: Mapping[str, Any]) -> dict[int, Any]:
    return {int(step): value for step, value in values.items()}
