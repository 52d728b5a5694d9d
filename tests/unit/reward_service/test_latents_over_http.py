"""Latents over HTTP: alone, to a service whose reward reads them."""

import asyncio

import numpy as np
import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.proto.settings import RewardPoolSettings, RewardSettings
from branchgrpo.reward_service.app import create_app
from branchgrpo.reward_service.parsing import Limits
from branchgrpo.reward_service.replica import Replica
from fastapi.testclient import TestClient
from score_requests import post_bytes, post_form, refused, stored
from support import warmth

PICTURES = np.zeros((3, 8, 8, 3), np.uint8)
LATENTS = np.random.default_rng(0).normal(size=(3, 4, 2, 6)).astype(np.float32)
PROMPTS = ["a", "b", "c"]


@pytest.fixture
def client() -> TestClient:
    reward = RewardSettings(function="support:warmth", reads="latents")
    replica = Replica("warmth", {"warmth": reward}, RewardPoolSettings(batch_pictures=2))

    async def score(request: ScoreRequest) -> ScoreReply:
        reply = await replica.score(request.media, request.prompts, request.id)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return TestClient(create_app(score, ["warmth"], Limits(pictures=4, bytes=2_000)))


def test_latents_are_scored_as_they_are(client: TestClient) -> None:
    for media in (Media(latents=LATENTS), Media(PICTURES, latents=LATENTS)):
        answer = post_bytes(client, ScoreRequest(media, PROMPTS, ["warmth"], "one").to_bytes())
        reply = ScoreReply.from_bytes(answer.content)
        assert reply.id == "one"
        np.testing.assert_array_equal(reply.scores["warmth"], warmth(LATENTS, PROMPTS))


def test_what_are_no_latents_is_refused(client: TestClient) -> None:
    refused(post_form(client, [stored(PICTURES[0])], ["a"], reward="warmth"), 422, "without its latents")
    whole = ScoreRequest(Media(latents=LATENTS), PROMPTS, ["warmth"]).to_bytes()
    refused(post_bytes(client, whole.replace(b'"F32"', b'"I32"')), 422, "latents is int32")
    many = Media(latents=np.zeros((5, 4), np.float32))
    refused(post_bytes(client, ScoreRequest(many, ["a"] * 5, ["warmth"]).to_bytes()), 413, "5 latents")
    long = Media(latents=np.zeros((1, 500), np.float32))
    refused(post_bytes(client, ScoreRequest(long, ["a"], ["warmth"]).to_bytes()), 413)


def test_requests_with_and_without_pictures_share_a_batch() -> None:
    """A reward of latents is asked about trees that are decoded and about others."""
    reward = RewardSettings(function="support:warmth", reads="latents")
    replica = Replica("warmth", {"warmth": reward}, RewardPoolSettings(batch_wait_seconds=0.5))
    media = [
        Media(latents=LATENTS),
        Media(PICTURES, latents=LATENTS),
        Media(PICTURES),
    ]

    async def ask() -> list[object]:
        return await asyncio.gather(*(replica.score(own, PROMPTS, str(i)) for i, own in enumerate(media)))

    first, second, refusal = asyncio.run(ask())
    assert first.scores["warmth"].tolist() == second.scores["warmth"].tolist() == warmth(LATENTS, PROMPTS).tolist()
    assert isinstance(refusal, InputError)
