"""Cutting an iteration into tasks for the workers and windows for the learner, and weights into pieces."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...proto.schedule import Schedule
from ...proto.settings import RewardSettings, RunSettings
from ...proto.tree import Task, Window

MAX_UNREAD_PARTS = 2
"""Number of unread parts of a task at which its worker pauses."""
PIECE_BYTES = 2**27
"""Maximum size of the pieces in which weights travel to the nodes of workers, unless one tensor is larger."""


def groups(count: int, size: int) -> list[range]:
    """The numbers from 0 to `count` in groups of `size` consecutive ones; the last may be smaller."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def tasks(
    iteration: int,
    prompts: Sequence[str],
    size: int,
    schedule: Schedule,
    seed: int,
    version: int,
    guidance_scale: float | None = None,
) -> list[Task]:
    """Tasks with a tree for each of `prompts`, `size` trees per task."""
    return [
        Task(iteration, tuple(group), tuple(prompts[tree] for tree in group), schedule, seed, version, guidance_scale)
        for group in groups(len(prompts), size)
    ]


def training_tasks(
    settings: RunSettings, iteration: int, prompts: Sequence[str], schedule: Schedule, version: int
) -> list[Task]:
    """The tasks of an iteration of training."""
    recorded = settings.logging.recorded_trees(iteration)
    handed_over: dict[str, Any] = {
        "recorded": recorded,
        "sampled": settings.logging.shown_trees(iteration),
        "previews": bool(recorded) and settings.logging.tree_previews,
        "latents": reads_latents(settings.training_rewards),
        "decoded": settings.decoded_trees(iteration),
    }
    cut = tasks(iteration, prompts, settings.rollout.trees_per_task, schedule, settings.seed, version)
    return [replace(task, **handed_over) for task in cut]


def reads_latents(rewards: Mapping[str, RewardSettings]) -> bool:
    """Whether one of the rewards reads latents."""
    return any(reward.reads == "latents" for reward in rewards.values())


def windows(settings: RunSettings, iteration: int) -> Iterator[Window[int]]:
    """The windows of an iteration, by the numbers of their trees. None holds trees of two updates."""
    learner = settings.learner
    for first in range(0, settings.prompts.per_iteration, settings.trees_per_update):
        # The forward passes that are kept belong to no window: all of them are worked on at once.
        size = settings.trees_per_update if learner.keep_graph else learner.window_trees
        for group in groups(settings.trees_per_update, size):
            trees = range(first + group.start, first + group.stop)
            yield Window(iteration, trees, closes_update=group.stop == settings.trees_per_update)
