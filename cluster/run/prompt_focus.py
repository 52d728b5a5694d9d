"""Prompts drawn by what they still teach: by how much the rewards of their leaves differed when last seen."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ...learner.advantages import FLAT_SPREAD
from ...proto.prompt import dump_prompts
from ...proto.settings import RunSettings
from ...proto.tree import FloatArray
from ...rollout_workers.noise import Stream
from .prompt_order import distinct_places_of, places_of

FILE = "focus.json"
Rewards = Mapping[str, FloatArray]
"""Reward -> scores of a tree's leaves, float64 [leaves]."""


class PromptChooser:
    """Decides the prompts of every iteration, and with `prompts.focus` learns from the rewards of its trees.

    An iteration begins with its prompts in the shuffled order. The last share of them, `focus`, is replaced by prompts
    that are drawn without replacement, in proportion to the spread of their rewards when last seen, which fades with
    every iteration since. No prompt is twice in an iteration. Where too few are known to teach, the order's stay.

    The draw of an iteration depends on what was learned up to the iteration before, or, with `staleness: 1`, the one
    before that, whatever has been learned since.
    """

    def __init__(self, settings: RunSettings, prompts: Sequence[str]) -> None:
        self._settings, self._prompts = settings, prompts
        self._seen: dict[int, tuple[int, float]] = {}
        """Place of a prompt -> the iteration in which it was last seen, and its spread then."""
        self._pending: list[tuple[int, dict[int, float]]] = []
        """Iterations that no decision has used yet: the spread of each prompt."""

    def places(self, iteration: int) -> list[int]:
        """The prompts of an iteration, counted from 1, by their places in the list of all. Call it for iterations in
        ascending order: those of each follow from the spreads that `record` was given before."""
        given, seed, number_of_all = self._settings.prompts, self._settings.seed, len(self._prompts)
        size, focused = given.per_iteration, given.focused
        if not focused:
            return places_of(iteration, number_of_all, size, seed)
        known = iteration - 1 - self._settings.staleness
        for number, spreads in [entry for entry in self._pending if entry[0] <= known]:
            self._seen |= {place: (number, spread) for place, spread in spreads.items()}
        self._pending = [entry for entry in self._pending if entry[0] > known]
        lots = np.random.Generator(np.random.Philox(key=[seed, iteration], counter=[0, 0, 0, int(Stream.FOCUS)]))
        order = distinct_places_of(iteration, number_of_all, size, seed)
        kept, replaced = order[: size - focused], order[size - focused :]
        chosen = list(dict.fromkeys([*kept, *self._drawn(known, lots), *replaced]))[:size]
        # Else the first of several updates would learn from the order alone, and the last from what was drawn.
        return [int(place) for place in lots.permutation(chosen)]

    def record(self, iteration: int, spreads: Mapping[int, float]) -> None:
        """Take note of the spread of the rewards of an iteration's prompts, by their places."""
        if self._settings.prompts.focused:
            self._pending.append((iteration, dict(spreads)))

    def save(self, folder: Path) -> None:
        """Write what has been learned into a checkpoint, if anything is."""
        if self._settings.prompts.focused:
            seen = [(place, *entry) for place, entry in self._seen.items()]
            pending = [(number, list(spreads.items())) for number, spreads in self._pending]
            state = {"prompts": self._digest(), "seen": seen, "pending": pending}
            (folder / FILE).write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint. One without `focus`, or with other prompts, changes nothing."""
        if self._settings.prompts.focused and (folder / FILE).is_file():
            state: dict[str, Any] = json.loads((folder / FILE).read_text())
            if state["prompts"] == self._digest():
                self._seen = {place: (number, spread) for place, number, spread in state["seen"]}
                self._pending = [(number, dict(spreads)) for number, spreads in state["pending"]]

    def _drawn(self, iteration: int, lots: np.random.Generator) -> list[int]:
        """All places that are known to teach, in the order in which they are drawn."""
        decay = self._settings.prompts.focus_decay
        weights = np.zeros(len(self._prompts))
        for place, (number, spread) in self._seen.items():
            weights[place] = spread * decay ** (iteration - number)
        # The smallest of exponential variables with these rates: draws in proportion to the weights, one by one.
        waits = lots.exponential(size=len(weights))
        teaching = np.flatnonzero(weights)
        return [int(place) for place in teaching[np.argsort(waits[teaching] / weights[teaching], kind="stable")]]

    def _digest(self) -> str:
        return sha256(dump_prompts(self._prompts).encode()).hexdigest()


def reward_spread(leaves: FloatArray) -> float:
    """Standard deviation of the rewards of a tree's leaves, float64 [leaves]; 0 where it is rounding alone."""
    spread = float(leaves.std())
    return spread if spread > FLAT_SPREAD * np.abs(leaves).max() else 0.0


def training_reward(settings: RunSettings, rewards: Rewards) -> FloatArray:
    """The weighted sum of the rewards of a tree's leaves, float64 [leaves]."""
    weights = {name: reward.weight for name, reward in settings.training_rewards.items()}
    return np.asarray(sum(weight * np.asarray(rewards[name]) for name, weight in weights.items()))
