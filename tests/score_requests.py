"""Pictures with texts, requests to the HTTP face, and a small service."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.reward_service.app import create_app
from branchgrpo.reward_service.openapi import BINARY
from branchgrpo.reward_service.parsing import Limits
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw, ImageFont

TEXTS = ["123", "128", "OPEN"]
PROMPTS = ["123", "123", 'a sign that says "OPEN"']
HEIGHT, WIDTH = 40, 96


def picture(text: str) -> np.ndarray:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    ImageDraw.Draw(image).text((8, 4), text, fill="black", font=ImageFont.load_default(size=28))
    return np.asarray(image)


MEDIA = np.stack([picture(text) for text in TEXTS])


def stored(pixels: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, np.asarray(pixels))
    else:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(file, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue()


def post_form(client: TestClient, files: list[bytes], prompts: list[str], **fields: Any) -> Any:
    parts: list[Any] = [("media", (f"{place}.png", data)) for place, data in enumerate(files)]
    for name, values in {"prompt": prompts, **fields}.items():
        parts += [(name, (None, value)) for value in ([values] if isinstance(values, str) else values)]
    return client.post("/v1/score", files=parts)


def post_bytes(client: TestClient, body: Any, kind: str = BINARY[0], **headers: str) -> Any:
    return client.post("/v1/score", content=body, headers={"content-type": kind, **headers})


async def mean(request: ScoreRequest) -> ScoreReply:
    """A reward that depends on every pixel."""
    return ScoreReply(scores={"mean": request.media.pictures.mean(axis=(1, 2, 3), dtype=np.float64)}, id=request.id)


@contextmanager
def small_client() -> Iterator[TestClient]:
    """A service with tight limits, which must still score at the end."""
    client = TestClient(create_app(mean, ["mean"], Limits(pictures=4, bytes=50_000, pixels=64 * 64)))
    yield client
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    answer = post_form(client, [stored(pixels)], ["p"])
    assert (answer.status_code, answer.json()) == (200, {"id": "", "scores": {"mean": [23.5]}})


def refused(answer: Any, status: int, *named: str) -> None:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    for name in named:
        assert name in answer.json()["error"]
