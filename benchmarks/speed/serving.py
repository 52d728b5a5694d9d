"""What serving a reward costs: pictures per second in a process, by handle and over HTTP; then 1,000 requests at once.

`branchgrpo serve-rewards` runs in a separate process, with one replica of one thread, as the model has here. The four
ways take turns, with enough requests at once that the replica never waits for the next one.

    python -m branchgrpo.benchmarks.speed.serving --out build/bench
"""

import asyncio
import io
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import httpx
import numpy as np
import numpy.typing as npt
import ray
import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from ...cluster.on_ray.connect import connected
from ...cluster.on_ray.names import service_name
from ...cluster.on_ray.reward_client import RewardClient
from ...proto.errors import RunFailed
from ...proto.media import Media
from ...proto.scoring import ScoreRequest
from ...proto.settings import RewardSettings
from ...reward_service.http_server import listen
from ...reward_service.openapi import BINARY
from ...reward_service.scorers import Scorers, reward_models
from ..support.demo import RECIPE, demo
from ..support.local_cluster import wait_until
from ..support.report import OUT, Out, Rounds, report_path, write_report

REWARDS = ("ocr",)
BATCH = 64
HEIGHT, WIDTH = 32, 64
UNDER_WAY = 4
"""Requests: some in the model, and the next ones on their way."""
CROWD = 1000
"""Connections with a request each, all at once."""

Ask = Callable[[], Awaitable[object]]


def pictures() -> tuple[npt.NDArray[np.uint8], list[str]]:
    """A batch of numbers, uint8 [BATCH, HEIGHT, WIDTH, 3], and the texts in them."""
    texts = [f"{37 * place % 1000:03d}" for place in range(BATCH)]
    font, drawn = ImageFont.load_default(size=24), []
    for text in texts:
        image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        ImageDraw.Draw(image).text((8, 2), text, fill="black", font=font)
        drawn.append(np.asarray(image))
    return np.stack(drawn), texts


@contextmanager
def served(name: str, token: str) -> Iterator[str]:
    """The URL of `branchgrpo serve-rewards`, on the Ray of this process."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    command = ["serve-rewards", str(RECIPE), f"name={name}", "--port", str(port)]
    command += ["pools.rewards.ocr={cpus: 1, threads: 1}", "--address", ray.get_runtime_context().gcs_address]
    process = subprocess.Popen(
        [sys.executable, "-m", "branchgrpo", *command],
        env={**os.environ, "BRANCHGRPO_TOKEN": token},
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or healthy(url), 300, lambda: "serve-rewards gives no answer")
        if process.poll() is not None:
            raise RunFailed(f"branchgrpo serve-rewards ended with {process.returncode}")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def healthy(url: str) -> bool:
    """Whether the service at a URL answers."""
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


@asynccontextmanager
async def connections(url: str, token: str, most: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client that keeps up to `most` connections to a server."""
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120) as client:
        yield client


async def per_second(ask: Ask, requests: int, under_way: int) -> float:
    """Pictures per second."""
    left = iter(range(requests))

    async def askers() -> None:
        for _ in left:
            await ask()

    start = time.perf_counter()
    await asyncio.gather(*(askers() for _ in range(under_way)))
    return requests * BATCH / (time.perf_counter() - start)


async def throughput(url: str, name: str, token: str, rounds: int, requests: int) -> dict[str, list[float]]:
    """Pictures per second by way of asking, in every round."""
    media, texts = pictures()
    request = ScoreRequest(Media(media), texts, REWARDS, "bench")
    here = Scorers({reward: RewardSettings() for reward in REWARDS}, threads=1)
    models = reward_models(demo({}).rewards)
    handle = RewardClient(service_name(name), models, dict.fromkeys(models, 300.0))
    body, kind = request.to_bytes(), {"content-type": BINARY[0]}
    files: list[Any] = [("media", (f"{place}.png", png(picture))) for place, picture in enumerate(media)]
    files += [("prompt", (None, text)) for text in texts] + [("reward", (None, reward)) for reward in REWARDS]
    form = httpx.Request("POST", url, files=files)
    form_body, form_kind = form.read(), {"content-type": form.headers["content-type"]}

    async with connections(url, token, UNDER_WAY) as client:

        async def in_process() -> None:
            here.score(request)

        async def by_handle() -> None:
            await handle.score(Media(media), texts, REWARDS, "bench")

        async def by_http() -> None:
            (await client.post("/v1/score", content=body, headers=kind)).raise_for_status()

        async def by_form() -> None:
            (await client.post("/v1/score", content=form_body, headers=form_kind)).raise_for_status()

        ways: dict[str, tuple[Ask, int]] = {
            "in process": (in_process, 1),
            "handle": (by_handle, UNDER_WAY),
            "HTTP, safetensors": (by_http, UNDER_WAY),
            "HTTP, form of PNGs": (by_form, UNDER_WAY),
        }
        measured: dict[str, list[float]] = {way: [] for way in ways}
        for round in range(rounds + 1):
            for way, (ask, under_way) in ways.items():
                speed = await per_second(ask, requests, under_way)
                if round:  # the first one warms up
                    measured[way].append(speed)
    return measured


def png(picture: npt.NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG file of a picture, uint8 [height, width, 3]."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


async def crowd(url: str, token: str, count: int = CROWD) -> dict[str, int]:
    """Send `count` requests at once, each on its own connection; returns the number of answers of each kind."""
    media, texts = pictures()
    body = ScoreRequest(Media(media), texts, REWARDS, "crowd").to_bytes()
    async with connections(url, token, count) as client:

        async def ask() -> str:
            try:
                answer = await client.post("/v1/score", content=body, headers={"content-type": BINARY[0]})
            except httpx.TransportError as error:
                return type(error).__name__
            later = "retry-after" in answer.headers
            return f"{answer.status_code}, Retry-After" if later else str(answer.status_code)

        answers = Counter(await asyncio.gather(*(ask() for _ in range(count))))
        after = await ask()
    return {**dict(sorted(answers.items())), "afterwards": int(after)}


def main(
    out: Out = OUT,
    rounds: Rounds = 7,
    requests: Annotated[int, typer.Option(help="Requests of 64 pictures per round and way.")] = 16,
) -> None:
    """Measure the reward service."""
    path = report_path(out, "serving")
    console, name, token = Console(), "bench", secrets.token_hex(8)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # on this host alone, and two processes share this Ray
    os.environ.setdefault("RAY_worker_niceness", "0")  # as this process, so that other load slows all ways alike
    with connected(None), served(name, token) as url:
        measured = asyncio.run(throughput(url, name, token, rounds, requests))
        answers = asyncio.run(crowd(url, token))
    alone = measured["in process"]
    ratios = {
        way: statistics.median(v / a for v, a in zip(values, alone, strict=True)) for way, values in measured.items()
    }
    goals = {"handle": "at least 0.90", "HTTP, safetensors": "at least 0.60"}
    table = Table(
        "way", "pictures / s", "of in process", "to reach", title=f"`ocr`, batches of {BATCH}, medians of {rounds}"
    )
    for way, values in measured.items():
        table.add_row(way, f"{statistics.median(values):.0f}", f"{ratios[way]:.2f}", goals.get(way, ""))
    console.print(table)
    answered = Table("answer", "requests", title=f"{CROWD} requests at once")
    for answer, number in answers.items():
        answered.add_row(answer, str(number))
    console.print(answered)
    report = {
        "pictures_per_second": {way: statistics.median(values) for way, values in measured.items()},
        "ratios": {way: {"measured": ratio, "to reach": goals.get(way)} for way, ratio in ratios.items()},
        "at_once": answers,
    }
    write_report(path, report)
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
