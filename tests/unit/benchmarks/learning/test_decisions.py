"""Where rewards are decided: shares of known variances, and a policy whose law is known."""

import numpy as np
import pytest
from branchgrpo.benchmarks.learning.decisions import START, decided, probes, still_open
from branchgrpo.benchmarks.support.gaussian import GaussianPolicy
from branchgrpo.proto.schedule import Schedule, tree_schedule
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import Task, Tree
from branchgrpo.rollout_workers.worker import RolloutWorker

STEPS = 8
PLAIN = tree_schedule(STEPS, kernel="dance", eta=0.5)


def test_shares_of_what_is_decided_add_up() -> None:
    shares = decided({START: 8.0, 0: 6.0, 3: 5.0, 6: 1.0})
    assert shares == {START: 0.25, 0: 0.125, 3: 0.5, 6: 0.125}
    assert sum(shares.values()) == 1


def test_open_variance_is_unbiased() -> None:
    found = still_open([np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([0.0, 4.0])])
    assert found.value == pytest.approx((2.0 + 0.0 + 8.0) / 3)


def test_probes_split_once_and_keep_the_noise() -> None:
    found = dict(probes(PLAIN, 4, 3))
    assert list(found) == [START, 0, 3, 6]
    for step, schedule in found.items():
        assert schedule.leaves == 4
        assert [own.eta for own in schedule.steps] == [own.eta for own in PLAIN.steps]
        assert schedule.nodes_per_depth == tuple(4 if depth > step else 1 for depth in range(STEPS + 1))


def test_a_late_split_leaves_less_open() -> None:
    """What is open at the start is the variance of the policy's normal law: 1 for the first coordinate."""
    steps = 40  # with few of them the law is another
    policy = GaussianPolicy((2.0, -1.0), ((1.0, 0.3), (0.3, 0.5)), steps, 2)
    worker = RolloutWorker(policy, RolloutSettings(max_batch_rows=512))
    found = probes(tree_schedule(steps, kernel="dance", eta=0.5), 32, 10)
    open_ = {step: _variance(worker, schedule) for step, schedule in found}
    assert open_[START] == pytest.approx(1.0, rel=0.15)
    assert list(open_.values()) == sorted(open_.values(), reverse=True)


def _variance(worker: RolloutWorker, schedule: Schedule) -> float:
    rewards = []
    for number in range(1, 33):
        tree = Tree(0, "0", schedule)
        for part in worker.sample(Task(number, (0,), ("0",), schedule, 0)):
            tree.add(part)
        first = schedule.first_node[-2]
        rewards.append(np.array([float(tree.state(first + leaf)[0]) for leaf in range(schedule.leaves)]))
    return still_open(rewards).value
