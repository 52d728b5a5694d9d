"""The plan of each iteration, its schedule and prompts, which may follow from what earlier iterations have shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...proto.schedule import Schedule
from ...proto.settings import RunSettings
from .prompt_focus import PromptChooser, Rewards, reward_spread, training_reward


@dataclass(frozen=True)
class Plan:
    """What an iteration samples."""

    number: int
    """Number of the iteration; the first is 1."""
    schedule: Schedule
    prompts: list[str]
    """Prompts of the iteration, one for each tree."""
    places: list[int]
    """Place of each prompt among the training prompts."""


class Planner:
    """Plans every iteration of a run, records its rewards, and keeps in the checkpoint what follows from them."""

    def __init__(self, settings: RunSettings, prompts: Sequence[str]) -> None:
        self._settings, self._prompts = settings, prompts
        self._focus = PromptChooser(settings, prompts)

    def plan(self, number: int) -> Plan:
        """The plan of an iteration, counted from 1. Call it for iterations in ascending order."""
        places = self._focus.places(number)
        schedule = self._settings.schedule.build(number, self._settings.seed)
        return Plan(number, schedule, [self._prompts[place] for place in places], places)

    def record(self, plan: Plan, rewards: Mapping[int, Rewards]) -> None:
        """Take note of the rewards of an iteration's leaves: by the number of a tree, then by the reward's name.

        Trees that were left out aren't among them.
        """
        if not self._settings.prompts.focused:  # nobody asks what a tree has taught
            return
        totals = {plan.places[tree]: training_reward(self._settings, scores) for tree, scores in rewards.items()}
        self._focus.record(plan.number, {place: reward_spread(leaves) for place, leaves in totals.items()})

    def save(self, folder: Path) -> None:
        """Write what has been learned into a checkpoint."""
        self._focus.save(folder)

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        self._focus.load(folder)
