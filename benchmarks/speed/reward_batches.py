"""Requests that arrive while a reward model is busy: Ray Serve's batching beside our own, in turns on one cluster.

The model is a stand-in that takes 100 ms for any batch of up to 64 requests, as a large model on a GPU nearly does. The
requests arrive every 12 ms, which is longer than the 10 ms that a batch waits to be filled.

    python -m branchgrpo.benchmarks.speed.reward_batches --out build/bench
"""

import asyncio
import os
import time
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any

import typer
from ray import serve
from rich.console import Console
from rich.table import Table

from ...cluster.on_ray.connect import connected
from ...cluster.on_ray.reward_deployment import QUIET_OPTIONS, start_serve
from ...proto.settings import RewardPoolSettings
from ...reward_service.batches import Batches
from ..support.report import OUT, Out, Rounds, report_path, write_report

POOL = RewardPoolSettings()
MODEL_SECONDS = 0.1
APART_SECONDS = 0.012


async def scored(requests: Sequence[int]) -> Sequence[int]:
    """The stand-in: the requests themselves, after a time that their number doesn't change."""
    await asyncio.sleep(MODEL_SECONDS)
    return requests


class BatchedByServe:
    """Batches that are closed after a wait, whatever the model does."""

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=POOL.batch_pictures, batch_wait_timeout_s=POOL.batch_wait_seconds
    )
    async def __call__(self, requests: list[int]) -> Sequence[int]:
        return await scored(requests)


class BatchedWhenFree:
    """Batches of what waits when the model is free."""

    def __init__(self) -> None:
        self._batches = Batches(scored, POOL.batch_pictures, POOL.batch_wait_seconds)

    async def __call__(self, request: int) -> int:
        return await self._batches.reply(request, 1)


async def per_second(model: Any, requests: int) -> float:
    """Requests answered per second, from the first one's arrival to the last one's reply."""
    start, replies = time.perf_counter(), []
    for request in range(requests):
        await asyncio.sleep(max(0, start + request * APART_SECONDS - time.perf_counter()))
        replies.append(asyncio.ensure_future(model.remote(request)))
    assert await asyncio.gather(*replies) == [*range(requests)]
    return requests / (time.perf_counter() - start)


async def lone_seconds(model: Any, times: int = 10) -> float:
    """Median seconds of a request that comes alone."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        await model.remote(0)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


async def measured(models: dict[str, Any], rounds: int, requests: int) -> dict[str, dict[str, list[float]]]:
    """Way of batching -> figures of every round; the first round warms up."""
    found: dict[str, dict[str, list[float]]] = {name: {"per_second": [], "lone_seconds": []} for name in models}
    for round in range(rounds + 1):
        for name, model in models.items():
            figures = {"per_second": await per_second(model, requests), "lone_seconds": await lone_seconds(model)}
            for key, value in figures.items() if round else ():
                found[name][key].append(value)
    return found


def main(
    out: Out = OUT,
    rounds: Rounds = 5,
    requests: Annotated[int, typer.Option(help="Requests per round and way.")] = 200,
) -> None:
    """Measure both ways of forming batches."""
    path = report_path(out, "reward_batches")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # on this host alone
    with connected(None):
        start_serve()
        ways = {"Ray Serve's": BatchedByServe, "when free": BatchedWhenFree}
        options = {"num_replicas": 1, "max_ongoing_requests": 1024, "ray_actor_options": {"num_cpus": 0.1}}
        models = {
            name: serve.run(
                serve.deployment(way).options(**options).bind(),
                name=way.__name__,
                route_prefix=None,
                logging_config=QUIET_OPTIONS,
            )
            for name, way in ways.items()
        }
        found = asyncio.run(measured(models, rounds, requests))
        for way in ways.values():
            serve.delete(way.__name__)
    before, after = found.values()
    ratios = {
        key: median(new / old for old, new in zip(before[key], after[key], strict=True))
        for key in next(iter(found.values()))
    }
    table = Table("batches", "requests per second", "seconds of a lone request")
    for name, figures in found.items():
        table.add_row(name, f"{median(figures['per_second']):.1f}", f"{median(figures['lone_seconds']):.3f}")
    table.add_row("ratio", f"{ratios['per_second']:.2f}", f"{ratios['lone_seconds']:.2f}")
    Console().print(table)
    write_report(path, {"found": found, "ratios": ratios})


if __name__ == "__main__":
    typer.run(main)
