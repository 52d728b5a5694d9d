"""Ways to sample and train on trees that take turns within one run, phase by phase on the clock."""

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from ...learner.learner import Learner
from ...proto.schedule import Schedule
from ...proto.scoring import ScoreRequest
from ...proto.settings import RunSettings
from ...proto.tree import Task, Tree, Window
from ...reward_service.scorers import Scorers
from ...rollout_workers.policies.base import Policy
from ...rollout_workers.policies.decoded import Decoded
from ...rollout_workers.policies.load import load_policy
from ...rollout_workers.worker import RolloutWorker


@dataclass
class Variant:
    """One way to sample and train on trees, and the seconds it took."""

    name: str
    settings: RunSettings
    sampling: list[float] = field(default_factory=list)
    """Seconds of sampling per tree, without decoding."""
    decoding: list[float] = field(default_factory=list)
    scoring: list[float] = field(default_factory=list)
    learning: list[float] = field(default_factory=list)
    rows: float = 0.0
    """Rows trained per tree."""

    @property
    def trees(self) -> int:
        """Trees of a round."""
        return self.settings.prompts.per_iteration

    @property
    def schedule(self) -> Schedule:
        return self.settings.schedule.build()

    def median(self, phase: str) -> float:
        """Median seconds of a phase per tree."""
        return statistics.median(self.seconds(phase))

    def ratio(self, other: "Variant", *phases: str) -> float:
        """Seconds over those of another variant, `phases` together: the median over rounds of their ratio."""
        pairs = zip(self.seconds(*phases), other.seconds(*phases), strict=True)
        return statistics.median(own / others for own, others in pairs)

    def forget(self) -> None:
        """Drop what was measured to warm up."""
        for measured in (self.sampling, self.decoding, self.scoring, self.learning):
            measured.clear()

    def seconds(self, *phases: str) -> list[float]:
        """Seconds per tree of each round, summed over `phases`."""
        return [sum(parts) for parts in zip(*(getattr(self, phase) for phase in phases), strict=True)]


class Runner:
    """A variant with the models that it needs."""

    def __init__(self, variant: Variant, scorers: Scorers | None) -> None:
        self.variant, self._scorers = variant, scorers
        self._policy = load_policy(variant.settings.policy)
        self._learner = Learner(self._policy, variant.settings)
        self._decoder = _Decoder(self._policy)
        self._worker = RolloutWorker(self._policy, variant.settings.rollout, kept_forwards=self._learner.kept_forwards)

    def round(self, number: int) -> None:
        """One rollout and one update, timed. The advantages come from random scores, so that no edge has none."""
        variant, schedule = self.variant, self.variant.schedule
        prompts = tuple(f"{i:03d}" for i in range(variant.trees))
        self._worker.embeddings.of(prompts)
        trees = [Tree(i, prompt, schedule) for i, prompt in enumerate(prompts)]
        gc.collect()
        self._decoder.seconds, start = 0.0, time.perf_counter()
        parts = list(
            self._worker.sample(Task(number, tuple(range(variant.trees)), prompts, schedule, 0, self._learner.version))
        )
        sampled = time.perf_counter() - start
        start = time.perf_counter()
        if self._scorers:
            for part in parts:
                request = ScoreRequest(
                    part.media, [prompts[part.tree]] * len(part.media), list(variant.settings.rewards)
                )
                self._scorers.score(request)
        scored = time.perf_counter() - start
        for part in parts:
            trees[part.tree].add(part)
        rng = np.random.default_rng(number)
        leaves = np.arange(schedule.first_node[-2], schedule.nodes)
        for tree in trees:
            tree.add_scores(leaves, {name: rng.random(len(leaves)) for name in variant.settings.rewards})
        start = time.perf_counter()
        self._learner.accumulate(Window(number, trees, closes_update=True))
        stats = self._learner.step()
        learned = time.perf_counter() - start
        if not stats.pruned_edges and stats.rows != schedule.rows * variant.trees:
            raise RuntimeError(
                f"{variant.name} trained {stats.rows} rows; its schedule has {schedule.rows * variant.trees}"
            )
        variant.rows = stats.rows / variant.trees
        variant.sampling.append((sampled - self._decoder.seconds) / variant.trees)
        variant.decoding.append(self._decoder.seconds / variant.trees)
        variant.scoring.append(scored / variant.trees)
        variant.learning.append(learned / variant.trees)


class _Decoder:
    """Counts the time that a policy spends in `decode`."""

    def __init__(self, policy: Policy) -> None:
        self.seconds, self._decode = 0.0, policy.decode
        policy.decode = self  # type: ignore[method-assign]

    def __call__(self, latents: torch.Tensor) -> torch.Tensor | Decoded:
        start = time.perf_counter()
        pictures = self._decode(latents)
        self.seconds += time.perf_counter() - start
        return pictures


def in_one_update(trees: int) -> dict[str, Any]:
    """Changes to a recipe: so many trees in an iteration, all in one task, one window and one update, and no edge
    skipped."""
    sizes = dict.fromkeys(("prompts.per_iteration", "rollout.trees_per_task", "learner.window_trees"), trees)
    return {**sizes, "learner.updates_per_iteration": 1, "learner.skip_zero_advantage": False}


def take_turns(variants: Sequence[Variant], rounds: int, console: Console, scorers: Scorers | None = None) -> None:
    """Measure all variants in each of `rounds` rounds, after one to warm up. Without `scorers`, nothing is scored."""
    runners = [Runner(variant, scorers) for variant in variants]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for number in progress.track(range(rounds + 1), description="measuring"):
            for runner in runners:
                runner.round(number)
                if number == 0:
                    runner.variant.forget()
