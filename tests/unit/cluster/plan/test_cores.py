"""Cores that processes share: closed forms."""

from dataclasses import replace
from typing import Any

import pytest
import simpy
from branchgrpo.cluster.plan.cores import Cores
from branchgrpo.cluster.plan.costs import Cluster, Costs
from branchgrpo.cluster.plan.simulation import simulate
from branchgrpo.proto.settings import RunSettings


def ends(jobs: list[tuple[float, float, int]], *args: Any) -> list[float]:
    """Ends of jobs that begin at a time, last so many seconds, and have so many processes."""
    env = simpy.Environment()
    cores = Cores(env, *args)
    ended: list[float] = [0.0] * len(jobs)

    def one(number: int, begin: float, seconds: float, processes: int) -> Any:
        yield env.timeout(begin)
        yield cores.work(seconds, processes)
        ended[number] = env.now

    for number, job in enumerate(jobs):
        env.process(one(number, *job))
    env.run()
    return ended


@pytest.mark.parametrize(
    ("jobs", "cores", "expected"),
    [
        ([(0, 1, 1), (0, 1, 1)], (0,), [1, 1]),  # a device each
        ([(0, 1, 1), (0, 1, 1)], (2,), [1, 1]),
        ([(0, 1, 1), (0, 1, 1)], (1,), [2, 2]),
        ([(0, 1, 4)], (2,), [2]),
        ([(0, 2, 1), (1, 2, 1)], (1,), [3, 4]),  # 1 alone, 1 by halves; then 1 by halves, 1 alone
        ([(0, 1, 1), (0, 1, 1)], (2, 1.5), [1.5, 1.5]),
        ([(0, 1, 1)], (2, 1.5), [1]),
        ([(0, 1, 2)], (3, 1.5), [1.25]),  # one of two others works
        ([(0, 2, 1), (1, 3, 1)], (2, 2.0), [3, 5]),  # 1 alone, 1 at half speed; 1 at half speed, 2 alone
        ([(0, 1, 2)], (2, 1.0, 0.5), [4 / 3]),
        ([(0, 1, 1)], (2, 1.0, 0.5), [1]),  # the other core does what stands
        ([(0, 0, 1), (0, 0, 1)], (1,), [0, 0]),
    ],
)
def test_work_ends_when_it_should(jobs: Any, cores: Any, expected: list[float]) -> None:
    assert ends(jobs, *cores) == pytest.approx(expected)


RECIPE = RunSettings.model_validate(
    {
        "name": "simulated",
        "policy": {"pretrained": "none"},
        "prompts": {"train": "none", "per_iteration": 8},
        "rewards": {"ocr": {}},
        "schedule": {"steps": 5, "splits": {0: 2, 2: 2}},
        "staleness": 1,
        "learner": {"window_trees": 4},
        "pools": {"rollout_workers": {"count": 2}, "learner": {"count": 2}, "rewards": {"ocr": {}}},
    }
)
COSTS = Costs(forward=0.01, forward_row=0.02, decode_picture=0.03, score_picture=0.02, learn_row=0.01)
COSTS = replace(COSTS, part_message=0.005, score_reply=0.004, latency=0.002)


def test_enough_cores_are_devices_of_their_own() -> None:
    alone, shared = (simulate(RECIPE, replace(COSTS, cores=cores), Cluster.of(RECIPE), 4) for cores in (0, 64))
    assert shared.seconds == pytest.approx(alone.seconds)
    assert shared.worked == pytest.approx(alone.worked)


def test_one_core_does_all_work_of_all_processes() -> None:
    costs = replace(COSTS, latency=0.0)
    alone = simulate(RECIPE, costs, Cluster.of(RECIPE), 4)
    work = (
        2 * (alone.worked["rollout"] + alone.worked["learner"]) + alone.worked["rewards"] + alone.worked["controller"]
    )
    one = simulate(RECIPE, replace(costs, cores=1), Cluster.of(RECIPE), 4)
    assert sum(one.seconds) == pytest.approx(4 * work)
