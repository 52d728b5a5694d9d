"""Trees that are sampled ahead of the learner are recorded as it used them, against a second computation."""

from contextlib import closing
from pathlib import Path

import numpy as np
from branchgrpo.cluster.run.cuts import training_tasks
from branchgrpo.cluster.run.planner import Planner
from branchgrpo.cluster.run.trained import policy_with
from branchgrpo.proto.learned_tree import EdgeState
from branchgrpo.proto.tree import Tree
from branchgrpo.rollout_workers.worker import RolloutWorker
from gradients import naive_ratio
from ray_runs import BASE, on_ray
from support import COUNTING, SMALL, Settings

PROMPTS = [f"{k:03d}" for k in range(24)]
POOLS = {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"counting": SMALL}}


def test_stale_trees_hold_what_the_learner_used(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """The tree is sampled again with the weights of its version; the newest ones give its ratios."""
    changes = {**BASE, "rewards": COUNTING, "pools": POOLS, "logging.trees": 1, "learner.optimizer.learning_rate": 1e-2}
    settings = run_settings({**changes, "execution": "ray", "staleness": 1, "iterations": 3})
    with closing(on_ray(settings, tmp_path / "run", head, PROMPTS)) as loop:
        for iteration in (1, 2, 3):
            (record,) = loop.iterate(iteration).trees
            loop.save(tmp_path / str(iteration))
    plan = Planner(settings, PROMPTS).plan(3)
    task = training_tasks(settings, 3, plan.prompts, plan.schedule, version=1)[0]
    older, newest = (policy_with(settings, tmp_path / str(number) / "weights.safetensors") for number in (1, 2))
    tree = Tree(0, task.prompts[0], plan.schedule)
    for part in RolloutWorker(older, settings.rollout, version=1).sample(task):
        if part.tree == 0:
            tree.add(part)
    noisy = record.stochastic
    np.testing.assert_allclose(record.logprob[noisy], tree.logprobs[noisy], rtol=1e-5)
    trained = np.flatnonzero(record.state == EdgeState.TRAINED)
    assert len(trained)
    ratios = [naive_ratio(newest, tree, node) for node in trained]
    np.testing.assert_allclose(record.ratio[trained], ratios, rtol=1e-4)
    assert np.abs(record.ratio[trained] - 1).max() > 1e-3
