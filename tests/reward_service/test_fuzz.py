"""A service of its own, under fire: from its own OpenAPI document, and by bytes made to harm.

Whatever is sent, there is no 5xx, the process lives, answers are as documented, and memory stays.
"""

import io
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import requests
import schemathesis
from branchgrpo.proto.safetensors_codec import encode
from branchgrpo.proto.scoring import ScoreRequest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from schemathesis import GenerationMode, checks

TOKEN, MAX_BYTES, UPLOAD_SECONDS = "secret", 200_000, 3.0
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
FAST = settings(
    derandomize=True, deadline=None, database=None, max_examples=60, suppress_health_check=list(HealthCheck)
)


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
        answer = self.post(ScoreRequest(MEDIA, ["1", "2"], ["ocr", "mean"], "x").to_bytes(), BINARY)
        assert answer.status_code == 200
        assert self.process.is_running()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
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
REQUEST = ScoreRequest(MEDIA[:1], ["1"], ["mean"], "x").to_bytes()


# From its own document


def bodies() -> st.SearchStrategy[bytes]:
    """Requests in safetensors: sound ones, and ones with a part overwritten."""
    rewards = st.lists(st.sampled_from(["ocr", "ocr_exact", "mean"]), min_size=1, max_size=3)
    prompts = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=2)
    sound = st.builds(lambda p, r, id: ScoreRequest(MEDIA, p, r, id).to_bytes(), prompts, rewards, st.text(max_size=9))
    return sound | st.builds(overwritten, sound, st.integers(0, 600), st.binary(max_size=30))


def overwritten(data: bytes, place: int, patch: bytes) -> bytes:
    return data[:place] + patch + data[place + len(patch) :]


REQUESTS = 10_000


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


def test_requests_made_from_its_document_are_answered_as_documented(service: Service) -> None:
    assert fire(service, 100, range(1)) >= 200
    assert service.answered[200] >= 20
    service.sound()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_thousands_of_requests_leave_the_process_as_it_was(service: Service) -> None:
    sent = fire(service, 600, range(1, 3))
    quarter = service.memory
    while sent < REQUESTS:
        sent += fire(service, 600, range(sent, sent + 1))
    assert service.memory - quarter < GROWTH
    service.sound()
    print(f"{sent} requests: {dict(service.answered)}; {quarter >> 20} MiB, then {service.memory >> 20} MiB")


# Pictures made to harm


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8), depth: int = 8, color: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in [(b"IHDR", head), *chunks, (b"IEND", b"")])


def redrawn(times: int) -> bytes:
    """A JPEG whose last pass over the picture, a few bytes, is there many times."""
    data = stored(IMAGE, "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * times + data[-2:]


ROWS = zlib.compress((b"\0" + bytes(24)) * 8)
ZEROS = zlib.compress(bytes(50 * 2**20), 9)
FRAMES = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(3)]
TEXTS = PngImagePlugin.PngInfo()
TEXTS.add_itxt("a" * 70, "\u2028" * 1000, zip=True)
EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "x" * 60_000
MASK = Image.new("P", (8, 8))
MASK.putpalette(bytes(range(256)) * 3)
PICTURES = {
    "plain": (png((b"IDAT", ROWS)), 200),
    "more data than pixels": (png((b"IDAT", ZEROS)), 200),
    "text that unpacks to 50 MB": (png((b"zTXt", b"a\0\0" + ZEROS), (b"IDAT", ROWS)), 422),
    "profile that unpacks to 50 MB": (png((b"iCCP", b"a\0\0" + ZEROS), (b"IDAT", ROWS)), None),
    "huge": (png((b"IDAT", ROWS), size=(2**31 - 1, 2**31 - 1)), 413),
    "huge and square": (png((b"IDAT", ROWS), size=(60_000, 60_000)), 413),
    "empty": (png((b"IDAT", ROWS), size=(0, 8)), 422),
    "wide": (png((b"IDAT", ROWS), size=(16_000, 1)), 422),
    "of no depth": (png((b"IDAT", ROWS), depth=3), 422),
    "palette that is missing": (png((b"IDAT", ROWS), color=3), None),
    "short": (png((b"IDAT", ROWS[:5])), 422),
    "without data": (png(), 422),
    "animated": (stored(FRAMES[0], save_all=True, append_images=FRAMES[1:]), 200),
    "animated, with 2 ** 32 - 1 frames": (png((b"acTL", b"\xff" * 8), (b"IDAT", ROWS)), 200),
    "16 bit": (stored(Image.fromarray(MEDIA[0, ..., 0].astype(np.uint16) * 257)), 200),
    "1 bit": (stored(IMAGE.convert("1")), 200),
    "gray and alpha": (stored(IMAGE.convert("LA")), 200),
    "palette with transparency": (stored(MASK, transparency=bytes(range(256))), 200),
    "with text": (stored(IMAGE, pnginfo=TEXTS), 200),
    "CMYK": (stored(IMAGE.convert("CMYK"), "JPEG"), 200),
    "gray JPEG": (stored(IMAGE.convert("L"), "JPEG"), 200),
    "turned": (stored(IMAGE, "JPEG", exif=EXIF), 200),
    "progressive": (stored(IMAGE, "JPEG", progressive=True), 200),
    "JPEG that is drawn 1,000 times": (redrawn(1000), 422),
    "GIF": (stored(IMAGE, "GIF"), 422),
    "TIFF": (stored(IMAGE, "TIFF"), 422),
    "zip": (b"PK\x03\x04" + bytes(100), 422),
}


@pytest.mark.parametrize(("data", "status"), PICTURES.values(), ids=PICTURES.keys())
def test_pictures_of_every_kind(service: Service, data: bytes, status: int | None) -> None:
    before = service.memory
    answer = service.picture(data)
    assert status in (None, answer.status_code), answer.text
    assert service.memory - before < GROWTH


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


@FAST
@given(data=mutated())
def test_mutated_pictures(service: Service, data: bytes) -> None:
    service.picture(data)
    service.picture(recrc(data))


@pytest.mark.slow
@pytest.mark.long
@settings(FAST, max_examples=1500)
@given(data=mutated())
def test_many_mutated_pictures(service: Service, data: bytes) -> None:
    service.picture(data)
    service.picture(recrc(data))


# Safetensors made to harm


def tensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def described(shape: list[int], start: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FACTS = json.dumps({"id": "x", "prompts": ["1"], "rewards": ["mean"]})
PIXEL = described([1, 1, 1, 3], 0, 3)


def headed(**entries: Any) -> bytes:
    return json.dumps({"__metadata__": {"request": FACTS}, "media": PIXEL, **entries}).encode()


def asked(**facts: Any) -> bytes:
    return tensors(headed(__metadata__={"request": json.dumps({**json.loads(FACTS), **facts})}), b"abc")


SAFETENSORS = {
    "sound": (tensors(headed(), b"abc"), 200),
    "overlapping": (tensors(headed(more=described([3], 1, 4)), b"abcd"), 400),
    "the same bytes twice": (tensors(headed(more=described([3], 0, 3)), b"abc"), 400),
    "a hole": (tensors(headed(media=described([1, 1, 1, 3], 2, 5)), b"abcde"), 400),
    "offsets that run backwards": (tensors(headed(media=described([1, 1, 1, 3], 3, 0)), b"abc"), 400),
    "offsets below zero": (tensors(headed(media=described([1, 1, 1, 3], -3, 0)), b"abc"), 400),
    "offsets beyond 64 bits": (tensors(headed(media=described([1, 1, 1, 3], 0, 2**65)), b"abc"), 400),
    "a shape that overflows": (tensors(headed(media=described([2**33, 2**33, 1, 3], 0, 3)), b"abc"), 400),
    "more after the end": (tensors(headed(), b"abcdef"), 400),
    "gigantic header": (tensors(headed(), b"abc", length=2**63), 400),
    "header as long as can be": (tensors(headed(), b"abc", length=2**64 - 1), 400),
    "header of no length": (tensors(b"", b"abc"), 400),
    "twice the same tensor": (tensors(headed().replace(b'"media"', b'"media": 1, "media"'), b"abc"), 400),
    "twice the same header": (
        tensors(headed().replace(b'{"__meta', b'{"__metadata__": {"request": "{}"}, "__meta', 1), b"abc"),
        400,
    ),
    "deep": (tensors(b'{"a":' * 30_000), 400),
    "deep in the facts": (asked(prompts=json.loads("[" * 300 + "]" * 300)), 422),
    "not UTF-8": (tensors(headed() + b"\xff\xfe", b"abc"), 400),
    "lone surrogates": (asked(prompts=["\ud800"]), 422),
    "a surrogate as key": (tensors(b'{"\\ud800": 1}'), 400),
    "NaN": (encode({"media": np.full((1, 2, 2, 3), np.nan, np.float32)}, {"request": FACTS}), 422),
    "bool": (encode({"media": np.zeros((1, 2, 2, 3), bool)}, {"request": FACTS}), 422),
    "an id of many lines": (asked(id="x\nERROR all is lost"), 422),
    "an id that paints": (asked(id="\x1b[31m"), 422),
    "a long id": (asked(id="x" * 201), 422),
    "a long prompt": (asked(prompts=["x" * 10_001]), 422),
    "quotes": (asked(prompts=['"' * 10_000]), 200),
    "a quote that never ends": (asked(prompts=['"' + " a" * 4_999], rewards=["ocr"]), 200),
    "no numbers": (asked(prompts=[1e400]), 422),
    "many rewards": (asked(rewards=["mean"] * 10_000), 200),
    "many tensors": (tensors(headed(**{str(n): described([0], 3, 3) for n in range(2000)}), b"abc"), 200),
}


@pytest.mark.parametrize(("body", "status"), SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_safetensors_of_every_kind(service: Service, body: bytes, status: int) -> None:
    before, start = service.memory, time.monotonic()
    answer = service.post(body, BINARY)
    assert answer.status_code == status, answer.text
    assert service.memory - before < GROWTH
    assert time.monotonic() - start < 30


@FAST
@given(
    place=st.integers(0, 300),
    patch=st.binary(max_size=16) | st.sampled_from([b"[" * 99, b"\xff" * 8, b'"\\ud800"', b"-1", b"1e999"]),
    length=st.none() | st.integers(0, 400),
)
def test_mutated_safetensors(service: Service, place: int, patch: bytes, length: int | None) -> None:
    service.post(overwritten(REQUEST, place, patch)[:length], BINARY)


# Forms and connections made to harm

HEAD = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
SAFE = HEAD + f"Content-Type: {BINARY}\r\n".encode()
CLOSE = b"Connection: close\r\n"


@FAST
@given(
    place=st.integers(0, 300),
    patch=st.binary(max_size=20) | st.sampled_from([b"\r\n--b", b"\r\n--b--", b'name="media"', b"\r\n" * 50, b"--"]),
    length=st.none() | st.integers(0, 400),
)
def test_mutated_forms(service: Service, place: int, patch: bytes, length: int | None) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    whole = part % (b"prompt", b"", b"p") + part % (b"media", b'; filename="a"', stored(IMAGE)) + b"--b--\r\n"
    service.post(overwritten(whole, place, patch)[:length], "multipart/form-data; boundary=b")


def test_a_body_that_drips_in_gives_its_place_back(service: Service) -> None:
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(SAFE + b"Content-Length: 1000\r\n\r\n")
        connection.settimeout(0.5)
        answer = b""
        while not answer and time.monotonic() - start < 20:
            connection.sendall(b"x")
            try:
                answer = connection.recv(9999)
                answer += connection.recv(9999)  # its head may come by itself
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"3 seconds" in answer
    service.sound()


def test_slow_bodies_shut_nobody_out_for_long(service: Service) -> None:
    slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(8)]
    for connection in slow:
        connection.sendall(SAFE + b"Content-Length: 1000\r\n\r\nx")
    time.sleep(0.5)
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": BINARY}
    refused = httpx.post(f"{service.url}/v1/score", content=REQUEST, headers=headers)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    time.sleep(UPLOAD_SECONDS + 1)
    service.sound()
    for connection in slow:
        connection.close()


def test_connections_without_a_request_are_closed(service: Service) -> None:
    for pieces in ([b""], [b"POST /v1/sc"], [HEAD, *[b"X-A: b\r\n"] * 8]):
        start = time.monotonic()
        service.raw(*pieces, pause=0.5)
        assert time.monotonic() - start < 9  # of the ten that are waited for an answer
    service.sound()


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([SAFE, CLOSE, b"Content-Length: 3\r\n\r\n", REQUEST], 400),
        ([SAFE, CLOSE, b"Content-Length: -1\r\n\r\n", REQUEST], 400),
        ([SAFE, CLOSE, b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", REQUEST], 400),
        ([SAFE, CLOSE, b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], 400),
        ([SAFE, CLOSE, b"Content-Length: 99999999999999999999\r\n\r\n", REQUEST], 413),
        ([SAFE, CLOSE, b"Content-Length: 300000\r\n\r\n", REQUEST], 413),
        (
            [SAFE, CLOSE, b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n" % len(REQUEST), REQUEST, b"\r\n0\r\n\r\n"],
            200,
        ),
        ([SAFE, CLOSE, b"Transfer-Encoding: chunked\r\n\r\n", b"ffffffffffffffffffffff\r\n"], 400),
        ([SAFE, CLOSE, b"Transfer-Encoding: chunked\r\n\r\n", b"no number\r\n"], 400),
        ([SAFE, CLOSE, b"Transfer-Encoding: chunked\r\n\r\n", *[b"8000\r\n", bytes(2**15), b"\r\n"] * 8], 413),
        ([SAFE, CLOSE, b"Transfer-Encoding: gzip\r\n\r\n"], None),
        ([SAFE, b"X-A: b\r\n" * 10_000], 400),
        ([SAFE, b"X-A: " + b"b" * 2**20], 400),
        ([b"GET /" + b"a" * 2**20], 400),
        ([SAFE, b"X-A: b\nX-B: c\r\n\r\n"], None),
        ([b"\x16\x03\x01\x02\x00\x01\x00" * 99], 400),
        ([b"GET /%ff%0d%0aX-A:%20b HTTP/1.1\r\nHost: x\r\n", CLOSE, b"\r\n"], 404),
        ([b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"], 200),
    ],
)
def test_connections_made_to_harm(service: Service, pieces: list[bytes], status: int | None) -> None:
    before = service.memory
    answer = service.raw(*pieces)
    if status is None:
        assert not answer.startswith(b"HTTP/1.1 5")
    elif answer:  # a connection that is closed while more is sent may lose the answer
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    else:
        assert status in (400, 413)
    assert b"X-A" not in answer
    assert service.memory - before < GROWTH
    service.sound()
