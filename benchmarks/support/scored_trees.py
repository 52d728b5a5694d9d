"""Trees of a policy outside a run, with a function that scores their leaves."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import typer

from ...cluster.commands.evaluate import Subject, use_threads
from ...cluster.run.cuts import tasks
from ...proto.media import Media
from ...proto.schedule import Schedule
from ...proto.scoring import ScoreRequest
from ...proto.settings import RunSettings
from ...proto.tree import Tree
from ...reward_service.scorers import Scorers
from ...rollout_workers.worker import RolloutWorker

Floats: TypeAlias = npt.NDArray[np.float64]
Score = Callable[[Media, str], Floats]
"""Scores of leaves of one prompt, float64 [n]."""


class TreeSource:
    """Samples trees by the policy of `subject`, and scores leaves by one of its rewards."""

    def __init__(self, subject: Subject, reward: str) -> None:
        settings = subject.settings
        self.settings, self.reward = settings, reward
        self.scorers = Scorers({reward: settings.rewards[reward]}, use_threads(settings))
        self.worker = RolloutWorker(subject.load(), settings.rollout)

    def score(self, media: Media, prompt: str) -> Floats:
        """Scores of leaves of one prompt, float64 [n]."""
        request = ScoreRequest(media, [prompt] * len(media), [self.reward])
        return self.scorers.score(request).scores[self.reward]

    def trees(self, prompts: Sequence[str], schedule: Schedule) -> Iterator[Tree]:
        """A sampled tree for each prompt, whose leaves have their scores."""
        for task in tasks(1, prompts, 1, schedule, self.settings.seed, self.worker.version):
            tree = Tree(task.trees[0], task.prompts[0], schedule)
            for part in self.worker.sample(task):
                tree.add(part)
                tree.add_scores(part.leaves, {self.reward: self.score(part.media, tree.prompt)})
            yield tree


def chosen_reward(settings: RunSettings, reward: str | None) -> str:
    """The reward that a command names, or else the first of the recipe. Raises typer.BadParameter if there is none."""
    reward = reward or next(iter(settings.rewards))
    if reward not in settings.rewards:
        raise typer.BadParameter(f"'{reward}' is none of {', '.join(settings.rewards)}", param_hint="reward")
    return reward
