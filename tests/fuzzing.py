"""A service of its own, and what is sent to harm it.

Whatever is sent, there is no 5xx, the process lives, answers are as documented, and memory stays.
"""

import io
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import schemathesis
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreRequest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode, checks
from served_face import TOKEN

BINARY = "application/x-safetensors"
RNG = np.random.default_rng(0)
MEDIA = RNG.integers(0, 256, (2, 24, 40, 3), np.uint8)
GROWTH = 30 * 2**20
"""Bytes that the process may grow after the first quarter: heaps are not given back at once, and more threads of its
pool have been used. A request that left its body behind would come to hundreds of MB in 10,000."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
FAST = settings(derandomize=True, database=None, max_examples=60, suppress_health_check=list(HealthCheck))


@dataclass
class Service:
    """The process, and what it has answered."""

    process: psutil.Process
    port: int
    answered: Counter[int] = field(default_factory=Counter)
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def memory(self) -> int:
        return self.process.memory_full_info().uss

    def post(self, body: bytes, kind: str) -> requests.Response:
        """The answer, which must not be the service's fault."""
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": kind}
        answer = self.session.post(f"{self.url}/v1/score", data=body, headers=headers, timeout=60)
        self.answered[answer.status_code] += 1
        assert answer.status_code in {200, 400, 413, 422}, answer.text
        if answer.status_code != 200:
            assert list(answer.json()) == ["error"]
            assert len(answer.text) < 1000
        return answer

    def picture(self, data: bytes) -> requests.Response:
        """The answer to a form with one picture."""
        parts = {"media": ("a.png", data), "prompt": (None, "p"), "reward": (None, "mean")}
        form = requests.Request("POST", self.url, files=parts).prepare()
        assert isinstance(form.body, bytes)
        return self.post(form.body, form.headers["content-type"])

    def raw(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """What comes back on a connection of its own until it is closed, or nothing more comes for a while."""
        got = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
                while chunk := connection.recv(65536):
                    got += chunk
            except (TimeoutError, ConnectionError):
                pass
        return got

    def sound(self) -> None:
        """Holds that it scores."""
        answer = self.post(ScoreRequest(Media(MEDIA), ["1", "2"], ["ocr", "mean"], "x").to_bytes(), BINARY)
        assert answer.status_code == 200
        assert self.process.is_running()


@contextmanager
def served() -> Iterator[Service]:
    """The service in a process of its own, which must still live at the end."""
    command = [sys.executable, str(Path(__file__).with_name("served_face.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Service(psutil.Process(process.pid), int(process.stdout.readline()))
            assert process.poll() is None
        finally:
            process.kill()


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


IMAGE = Image.fromarray(MEDIA[0])
REQUEST = ScoreRequest(Media(MEDIA[:1]), ["1"], ["mean"], "x").to_bytes()


# From its own document
def bodies() -> st.SearchStrategy[bytes]:
    """Requests in safetensors: sound ones, and ones with a part overwritten."""
    rewards = st.lists(st.sampled_from(["ocr", "ocr_exact", "mean"]), min_size=1, max_size=3)
    prompts = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=2)
    media = Media(MEDIA)
    sound = st.builds(lambda p, r, id: ScoreRequest(media, p, r, id).to_bytes(), prompts, rewards, st.text(max_size=9))
    return sound | st.builds(overwritten, sound, st.integers(0, 600), st.binary(max_size=30))


def overwritten(data: bytes, place: int, patch: bytes) -> bytes:
    return data[:place] + patch + data[place + len(patch) :]


def pictures() -> st.SearchStrategy[bytes]:
    return st.sampled_from([stored(IMAGE), stored(IMAGE, "JPEG"), stored(IMAGE.convert("P"))]) | st.binary(max_size=99)


def fire(service: Service, examples: int, seeds: range) -> int:
    """Sends `examples` requests, or more, per operation, way and seed; returns how many there were."""
    schemathesis.openapi.format("binary", pictures())
    for kind in (BINARY, "application/octet-stream"):
        schemathesis.openapi.media_type(kind, bodies())
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 3
    sent = 0
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for number in seeds:
        for operation in operations:
            # Where a request has neither parameters nor token, none is wrong.
            for mode in [GenerationMode.POSITIVE] if operation.path == "/healthz" else GenerationMode:
                share = examples if operation.path == "/v1/score" else max(examples // 20, 5)

                @seed(number)
                @settings(FAST, derandomize=False, max_examples=share, phases=[Phase.generate])
                @given(case=operation.as_strategy(generation_mode=mode))
                def send(case: schemathesis.Case) -> None:
                    nonlocal sent
                    answer = case.call(session=service.session, headers=headers, timeout=60)
                    sent += 1
                    service.answered[answer.status_code] += 1
                    case.validate_response(answer, checks=CHECKS)

                send()
    return sent


# Pictures made to harm
def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def mutated() -> st.SearchStrategy[bytes]:
    """Pictures with bits flipped, cut off, and with numbers in headers that lie."""
    seeds = [stored(IMAGE), stored(IMAGE, "JPEG"), stored(IMAGE, "JPEG", progressive=True), stored(IMAGE.convert("P"))]
    file = io.BytesIO()
    np.save(file, MEDIA)
    whole = st.sampled_from([*seeds, file.getvalue()])
    flips = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 7)), max_size=8)
    lies = st.tuples(
        st.integers(0, 200), st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff"])
    )
    return st.builds(harmed, whole, flips, lies | st.none(), st.integers(0, 4000) | st.none())


def harmed(data: bytes, flips: list[tuple[int, int]], lie: tuple[int, bytes] | None, length: int | None) -> bytes:
    mutable = bytearray(data)
    for place, bit in flips:
        mutable[place % len(mutable)] ^= 1 << bit
    return overwritten(bytes(mutable), *lie)[:length] if lie else bytes(mutable)[:length]


def recrc(data: bytes) -> bytes:
    """A PNG whose checksums are right again, so that what is wrong with it is found by its decoder."""
    if not data.startswith(b"\x89PNG"):
        return data
    fixed, place = data[:8], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        fixed += chunk(data[place + 4 : place + 8], data[place + 8 : place + 8 + length])
        place += 12 + length
    return fixed
