"""Ranks that share a network begin and end their pieces of work together, and the first error ends all."""

import asyncio
from functools import partial

import pytest
from branchgrpo.cluster.on_ray.messages import ProcessInfo
from branchgrpo.cluster.on_ray.step_pool import StepPool
from branchgrpo.cluster.on_ray.worker_pool import Worker

RANKS = 3


def pool() -> StepPool:
    ranks = StepPool("ranks")
    for rank in range(RANKS):
        ranks.adopt(rank, ProcessInfo(rank, "node", "id", f"exporter {rank}"))
    return ranks


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_every_rank_takes_part_in_every_round(count: int) -> None:
    rounds: list[list[str]] = [[]]
    ranks: list[int] = []

    async def take_part(name: str, worker: Worker) -> str:
        """Wait for all ranks, as a collective does: with one that has nothing to do, it would take for ever."""
        mine = rounds[-1]
        mine.append(name)
        ranks.append(worker.actor)
        while len(mine) < RANKS:
            await asyncio.sleep(0)
        if mine is rounds[-1]:
            rounds.append([])
        return name

    async def all_of_them() -> list[str]:
        shared = pool()
        works = [partial(take_part, f"{number}") for number in range(count)]
        return await asyncio.gather(*(shared.run(work, partial(take_part, "beside")) for work in works))

    assert asyncio.run(asyncio.wait_for(all_of_them(), 60)) == [f"{number}" for number in range(count)]
    done = [name for own in rounds for name in own]
    assert sorted(ranks) == sorted([*range(RANKS)] * (len(done) // RANKS))
    assert len(done) == -(-count // RANKS) * RANKS
    assert sorted(name for name in done if name != "beside") == [f"{number}" for number in range(count)]


@pytest.mark.parametrize("who", ["work", "beside"])
def test_a_rank_that_fails_ends_the_wait_for_the_others(who: str) -> None:
    async def block(worker: Worker) -> None:
        await asyncio.Event().wait()

    async def fail(worker: Worker) -> None:
        raise ValueError("no such state")

    async def one() -> None:
        work, beside = (fail, block) if who == "work" else (block, fail)
        await pool().run(work, beside)

    with pytest.raises(ValueError, match="no such state"):
        asyncio.run(asyncio.wait_for(one(), 60))
