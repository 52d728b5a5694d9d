"""The pools of reward models, and nodes that can't have a pool."""

import pytest
from branchgrpo.cluster.on_ray.placement import Demand, Node, check_room, reward_pools
from branchgrpo.proto.errors import InputError
from support import Settings

JUDGE = {"url": "http://judge.example/v1", "model": "judge", "questions": ["Is this {prompt}?"] * 3, "concurrency": 4}


@pytest.mark.parametrize(
    ("rewards", "pool", "seconds"),
    [
        # Two batches, each of 10 * 3 / 4 questions after each other, of seven attempts with six waits.
        ({"judge": JUDGE}, {"batch_pictures": 10}, 2 * 8 * (7 * (10 + 50) + 6 * 8)),
        ({"judge": {**JUDGE, "concurrency": 30}}, {"batch_pictures": 10}, 2 * (7 * (10 + 50) + 6 * 8)),
        ({"judge": JUDGE, "timeout_seconds": 5}, {"batch_pictures": 4}, 2 * 3 * (7 * (10 + 5) + 6 * 8)),
        ({"judge": JUDGE}, {"batch_pictures": 10, "timeout_seconds": 9000}, 9000),
        ({"url": "http://rewards.example"}, {}, 7 * (10 + 50 + 10)),
        ({"function": "support:shade"}, {}, 300),
    ],
)
def test_a_request_may_take_all_attempts(
    run_settings: Settings, rewards: dict[str, object], pool: dict[str, object], seconds: float
) -> None:
    settings = run_settings({"rewards": {"own": rewards}, "pools.rewards": {"own": pool}})
    assert reward_pools(settings)["own"].timeout_seconds == seconds


def test_labels_that_no_node_has_are_told_beside_those_there() -> None:
    wanted = Demand("pools.learner", 1, {"GPU": 1}, {"zone": "a", "pool": "learner"})
    nodes = [Node(name, {"GPU": 1}, {"pool": name, "zone": "b"}) for name in ("rollout", "learner")]
    with pytest.raises(InputError) as error:
        check_room([wanted], nodes)
    assert str(error.value) == (
        "pools.learner needs nodes labelled pool=learner, zone=a; of 2 nodes none is (labels there: pool=learner, "
        "pool=rollout, zone=b)"
    )
