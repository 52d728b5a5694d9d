"""Requests to profile a run on Ray, as its controller takes them."""

import asyncio
import pickle

import pytest
from branchgrpo.cluster.on_ray.profiling import AwaitedProfiling
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.profiling import Component, ProfileRequest
from support import Settings

REQUEST = ProfileRequest(2, (Component.ROLLOUT, Component.LEARNER))


def test_a_request_is_fulfilled_by_the_next_iterations(run_settings: Settings) -> None:
    async def asked_in(begun: int) -> tuple[int, int]:
        profiling = AwaitedProfiling(run_settings({"execution": "ray", "iterations": 9}))
        waiting = asyncio.create_task(profiling.profiled(begun, pickle.loads(pickle.dumps(REQUEST))))
        await asyncio.sleep(0)
        with pytest.raises(InputError, match="are being profiled already; ask again after them"):
            await profiling.profiled(begun, REQUEST)
        for number in range(begun, 10):
            assert not profiling.order(Component.REWARD, number)
            assert not profiling.order(Component.LEARNER, number, first=False)
            order = profiling.order(Component.ROLLOUT, number)
            assert bool(order) == (begun < number <= begun + 2)
            assert order is None or order.components == (Component.ROLLOUT,)
            profiling.iteration_ended(number)
            await asyncio.sleep(0)
        found = await waiting
        assert found.components == REQUEST.components
        return found.first, found.last

    assert asyncio.run(asked_in(3)) == (4, 5)
    assert asyncio.run(asked_in(8)) == (9, 9)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({}, "iteration 9 of 9 has begun; there is none left"), ({"logging.trace": False}, "this run writes no spans")],
)
def test_some_runs_can_not_be_profiled(run_settings: Settings, changes: dict[str, bool], complaint: str) -> None:
    profiling = AwaitedProfiling(run_settings({"execution": "ray", "iterations": 9, **changes}))
    with pytest.raises(InputError, match=complaint):
        asyncio.run(profiling.profiled(9, REQUEST))
