"""Who is let in to the HTTP face: with the token, within the limits of size, number and time."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.reward_service.app import create_app
from branchgrpo.reward_service.openapi import BINARY, FORM
from branchgrpo.reward_service.parsing import Limits
from fastapi.testclient import TestClient
from score_requests import MEDIA, PROMPTS, mean, post_bytes


@pytest.mark.parametrize("kind", [BINARY[0], f"{FORM}; boundary=b"])
@pytest.mark.parametrize("length", [None, "10"])
def test_a_body_that_lies_about_its_size_is_read_to_the_limit(small: TestClient, kind: str, length: str | None) -> None:
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 10_000
        body = b'--b\r\nContent-Disposition: form-data; name="media"; filename="a"\r\n\r\n' if sent == 10_000 else b""
        return {"type": "http.request", "body": body.ljust(10_000, b"x"), "more_body": True}

    status, error = call(small.app, receive, {"content-type": kind, **({"content-length": length} if length else {})})
    assert (status, sent) == (413, 60_000)
    assert "50000 bytes" in error


def test_a_body_that_is_announced_as_too_large_is_not_read(small: TestClient) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("read")

    status, error = call(small.app, receive, {"content-type": BINARY[0], "content-length": "50001"})
    assert status == 413
    assert "50000 bytes" in error
    assert call(small.app, receive, {"content-type": BINARY[0], "content-length": "many"})[0] == 400


def test_a_client_that_leaves_is_no_failure(small: TestClient) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    for kind in (BINARY[0], f"{FORM}; boundary=b"):
        assert call(small.app, receive, {"content-type": kind})[0] == 400


def call(app: Any, receive: Any, headers: dict[str, str]) -> tuple[int, str]:
    """Status and error of a POST /v1/score whose body comes from `receive`."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "headers": raw}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


def test_only_those_with_the_token_are_answered() -> None:
    client = TestClient(create_app(mean, ["mean"], token="secret"))
    body = ScoreRequest(Media(MEDIA), PROMPTS, ["mean"]).to_bytes()
    assert client.get("/healthz").status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic secret"},
        {"authorization": b"Bearer \xe9"},
    ):
        for answer in (post_bytes(client, body, **headers), client.get("/v1/rewards", headers=headers)):
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "Authorization: Bearer TOKEN" in answer.json()["error"]
    known = {"authorization": "Bearer secret"}
    assert post_bytes(client, body, **known).status_code == 200
    assert client.get("/v1/rewards", headers=known).json() == ["mean"]


def test_more_requests_than_there_is_room_for_are_refused() -> None:
    async def ask() -> None:
        inside, go = asyncio.Semaphore(0), asyncio.Event()

        async def slow(request: ScoreRequest) -> ScoreReply:
            inside.release()
            await go.wait()
            return await mean(request)

        transport = httpx.ASGITransport(create_app(slow, ["mean"], Limits(requests=3)))
        body = ScoreRequest(Media(MEDIA), PROMPTS, ["mean"]).to_bytes()
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:

            async def post() -> httpx.Response:
                return await client.post("/v1/score", content=body, headers={"content-type": BINARY[0]})

            first = [asyncio.create_task(post()) for _ in range(3)]
            for _ in first:
                await inside.acquire()
            refused = await asyncio.gather(*(post() for _ in range(20)))
            assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(429, "1")}
            assert "3 requests are in progress" in refused[0].json()["error"]
            go.set()
            assert {answer.status_code for answer in await asyncio.gather(*first)} == {200}
            assert (await post()).status_code == 200

    asyncio.run(ask())


def test_requests_of_too_many_bytes_together_are_refused() -> None:
    body = ScoreRequest(Media(MEDIA), PROMPTS, ["mean"]).to_bytes()

    async def ask() -> None:
        inside, go = asyncio.Semaphore(0), asyncio.Event()

        async def slow(request: ScoreRequest) -> ScoreReply:
            inside.release()
            await go.wait()
            return await mean(request)

        # A body in safetensors counts twice, as it came and as an array: the third request gets no further than that.
        transport = httpx.ASGITransport(create_app(slow, ["mean"], Limits(held=5 * len(body))))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:

            async def post() -> httpx.Response:
                return await client.post("/v1/score", content=body, headers={"content-type": BINARY[0]})

            for _ in range(2):  # what was held is free again
                go.clear()
                first = [asyncio.create_task(post()) for _ in range(2)]
                for _ in first:
                    await inside.acquire()
                refused = await post()
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert f"hold {5 * len(body)} bytes" in refused.json()["error"]
                go.set()
                assert {answer.status_code for answer in await asyncio.gather(*first)} == {200}

    asyncio.run(ask())


def test_bodies_are_read_in_turns() -> None:
    """A body that is there at once, as from a proxy's queue, keeps no other request waiting until all is parsed."""
    turns: list[int] = []

    async def scenario() -> None:
        messages = 0

        async def receive() -> dict[str, Any]:
            nonlocal messages
            messages += 1
            return {"type": "http.request", "body": b"x" * 1000, "more_body": messages < 50}

        async def others() -> None:
            while messages < 50:
                turns.append(messages)
                await asyncio.sleep(0)

        scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b""}
        scope["headers"] = [(b"content-type", BINARY[0].encode())]

        async def send(message: Any) -> None:
            pass

        await asyncio.gather(create_app(mean, ["mean"])(scope, receive, send), others())

    asyncio.run(scenario())
    assert len(set(turns)) > 40


def test_a_score_that_takes_too_long_is_not_waited_for() -> None:
    async def never(request: ScoreRequest) -> ScoreReply:
        await asyncio.Event().wait()
        raise AssertionError

    client = TestClient(create_app(never, ["mean"], Limits(seconds=0.05)))
    answer = post_bytes(client, ScoreRequest(Media(MEDIA), PROMPTS, ["mean"]).to_bytes())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "0.05 seconds" in answer.json()["error"]
