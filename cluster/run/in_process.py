"""The whole loop in one process, without Ray: sample, score, learn, publish.

Rollout worker and learner share one policy: publishing sends nothing, the worker samples with the learner's own
parameters.
"""

import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...learner.learner import Learner
from ...learner.partitioned import builder
from ...proto.learned_tree import LearnedTree
from ...proto.media import Media, joined
from ...proto.remote_tree import part_id
from ...proto.scoring import ScoreRequest
from ...proto.settings import RunSettings
from ...proto.tree import Tree
from ...reward_service.scorers import Scorers
from ...rollout_workers.policies.base import cut_prompts
from ...rollout_workers.policies.load import find_device, load_policy
from ...rollout_workers.worker import RolloutWorker
from . import checkpoints
from .cuts import training_tasks, windows
from .evaluation import Evaluation, evaluate
from .loop import IterationReport, Progress
from .planner import Planner
from .profile_file import FileProfiling, ProfiledTimeline
from .samples import TreeSamples
from .tree_record import TreeRecord, tree_record


class InProcessLoop:
    """One process that holds the policy, the rewards and the learner."""

    def __init__(self, settings: RunSettings, prompts: Sequence[str]) -> None:
        """Loads all models; `prompts` are those to train on. Raises ValueError for settings that don't fit them."""
        self.settings, self._prompts = settings, prompts
        self._profiling = FileProfiling(settings)
        self.restart()

    def restart(self, *, lost: bool = True) -> None:
        settings = self.settings
        self._profiling.drop()
        if hasattr(self, "learner"):
            self._let_go()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.planner = Planner(settings, self._prompts)
        self.scorers = Scorers(settings.rewards, settings.threads, settings.pools.rewards)
        device = find_device(settings.policy)
        build = builder(settings.learner, settings.policy.precision, device)
        self.policy = load_policy(settings.policy, build=build)
        self.learner = Learner(self.policy, settings)
        old = self.learner.old
        sampler = old.sampler() if old else self.policy
        self.worker = RolloutWorker(sampler, settings.rollout, self.learner.version, self.learner.kept_forwards)

    def _let_go(self) -> None:
        """Give up what is loaded, before it is loaded again: there may be no room for two of everything."""
        for name in ("worker", "learner", "policy", "scorers"):
            self.__dict__.pop(name, None)
        gc.collect()
        torch.cuda.empty_cache()

    def iterate(self, number: int, progress: Progress = lambda phase, share: None) -> IterationReport:
        with self._profiling.iteration(number) as timeline:
            return self._iterate(number, progress, timeline)

    def _iterate(self, number: int, progress: Progress, timeline: ProfiledTimeline) -> IterationReport:
        plan, rewards = self.planner.plan(number), list(self.settings.training_rewards)
        schedule, prompts = plan.schedule, plan.prompts
        trees = [Tree(i, prompt, schedule) for i, prompt in enumerate(prompts)]
        shown = self.settings.logging.shown_trees(number)
        media: dict[int, list[Media]] = {}
        diversity: dict[int, float] = {}
        leaves_done = 0
        for task in training_tasks(self.settings, number, prompts, schedule, self.worker.version):
            with timeline.phase("rollout"):
                parts = self.worker.sample(task)
            for part in timeline.each("rollout", parts):
                tree = trees[part.tree]
                tree.add(part)
                if part.diversity is not None:
                    diversity[part.tree] = part.diversity
                with timeline.phase("scoring", part=part_id(number, part.tree, part.leaves)):
                    request = ScoreRequest(part.media, [tree.prompt] * len(part.media), rewards)
                    tree.add_scores(part.leaves, self.scorers.score(request).scores)
                if part.tree < shown:
                    media.setdefault(part.tree, []).append(part.media)
                leaves_done += len(part.leaves)
                progress("rollout", leaves_done / (len(trees) * schedule.leaves))
        self.planner.record(plan, {tree.number: tree.rewards for tree in trees})
        updates = []
        for window in windows(self.settings, number):
            with timeline.phase("learning"):
                self.learner.accumulate(window.of(trees.__getitem__))
                if window.closes_update:
                    updates.append(self.learner.step())
            progress("learning", (window.trees[-1] + 1) / len(trees))
        with timeline.phase("publishing"):
            self._publish(self.learner.publish())
        return IterationReport(
            iteration=number,
            rewards={name: np.concatenate([tree.rewards[name] for tree in trees]) for name in rewards},
            seconds={name: timeline.seconds(name) for name in timeline.spans},
            usage=timeline.usage,
            forward_passes=len(trees) * schedule.forward_passes,
            updates=updates,
            diversity=float(np.mean(list(diversity.values()))) if diversity else None,
            samples=[TreeSamples(n, trees[n].prompt, trees[n].rewards, joined(media[n])) for n in sorted(media)],
            trees=[self._record(number, trees[own.number], own) for update in updates for own in update.recorded],
        )

    def _record(self, number: int, tree: Tree, learned: LearnedTree) -> TreeRecord:
        sampled = tree.prompt, tree.schedule, tree.logprobs, tree.rewards, tree.thumbnails
        return tree_record(number, self.settings.learner.objective, *sampled, learned)

    def _publish(self, version: int) -> None:
        shared = self.worker.policy is self.policy
        self.worker.adopt(version, None if shared else self.learner.weights())

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        return cut_prompts(self.policy, prompts)

    def evaluate(self, prompts: Sequence[str]) -> Evaluation:
        return evaluate(self.worker, self.scorers, self.settings, prompts)

    def save(self, folder: Path) -> None:
        with checkpoints.written(folder) as temporary:
            self.learner.save(temporary)
            self.planner.save(temporary)

    def load(self, folder: Path) -> None:
        self.learner.load(folder)
        self.planner.load(folder)
        self._publish(self.learner.version)

    def export(self, folder: Path) -> None:
        self.learner.export(folder)

    def close(self) -> None:
        """Do nothing: the process ends."""
