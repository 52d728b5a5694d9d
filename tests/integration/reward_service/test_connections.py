"""A service of its own, and connections made to harm it."""

import socket
import time

import httpx
import pytest
from fuzzing import BINARY, GROWTH, REQUEST, Service
from served_face import TOKEN, UPLOAD_SECONDS

HEAD = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
SAFE = HEAD + f"Content-Type: {BINARY}\r\n".encode()
CLOSE = b"Connection: close\r\n"


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
