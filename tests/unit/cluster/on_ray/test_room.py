"""Room for trees that are sampled ahead: tasks get places in their order, whatever their sizes."""

import asyncio

from branchgrpo.cluster.on_ray.room import Room


def test_a_small_task_does_not_overtake_a_larger_one() -> None:
    """It would take the places of the trees that the learner waits for, and nothing would ever be freed."""

    async def tasks() -> list[int]:
        room, entered = Room(18), []

        async def enter(trees: int) -> None:
            await room.take(trees)
            entered.append(trees)

        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for trees in (10, 9, 8):
                group.create_task(enter(trees))
            await asyncio.sleep(0.1)
            assert (entered, room.taken) == ([10], 10), "8 would fit"
            await room.free(10)
        assert room.taken == 17
        return entered

    assert asyncio.run(tasks()) == [10, 9, 8]
