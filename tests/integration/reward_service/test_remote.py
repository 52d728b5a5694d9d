"""Rewards of other services."""

import importlib.util
import json
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from branchgrpo.proto.media import Media
from branchgrpo.proto.prompt import Prompt
from branchgrpo.proto.scoring import NotScored, ScoreReply, ScoreRequest
from branchgrpo.proto.settings import RewardPoolSettings, RewardSettings
from branchgrpo.reward_service import remote
from branchgrpo.reward_service.app import create_app
from branchgrpo.reward_service.replica import Replica
from published import PROMPTS, pictures
from support import ROOT, at_once, scores, serving, shade, warmth


def served(score: Any, token: str | None = None) -> AbstractContextManager[str]:
    """Address of our own HTTP service around a function."""
    return serving(create_app(score, ["far"], token=token))


@pytest.mark.parametrize("frames", [1, 3])
def test_another_service_gives_the_same_scores_after_trouble(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_WAIT", 0.01)
    monkeypatch.setenv("BRANCHGRPO_REMOTE_TOKEN", "secret")
    trouble, asked = [RuntimeError("no"), RuntimeError("no")], []

    async def score(request: ScoreRequest) -> ScoreReply:
        asked.append(request.media.pictures.shape)
        if trouble:
            raise trouble.pop()
        return ScoreReply({"far": shade(request.media.pictures, request.prompts)})

    media = pictures(8, 12)
    if frames > 1:
        media = np.repeat(media[:, None], frames, axis=1)
    with served(score, token="secret") as url:
        found = scores("far", RewardSettings(url=url), media)
    np.testing.assert_allclose(found, media.mean(axis=tuple(range(1, media.ndim))))
    assert asked == [media.shape] * 3


def test_another_service_gets_of_leaves_what_it_reads() -> None:
    asked, latents = [], np.random.default_rng(0).normal(size=(len(PROMPTS), 4, 3)).astype(np.float32)

    async def score(request: ScoreRequest) -> ScoreReply:
        asked.append(set(request.media.arrays()))
        found = request.media.latents if request.media.pictures is None else request.media.pictures
        return ScoreReply({"far": found.reshape(len(found), -1).mean(axis=1).astype(float)})

    media = Media(pictures(8, 12), latents=latents)
    with served(score) as url:
        warm = scores("far", RewardSettings(url=url, reads="latents"), media)
        shown = scores("far", RewardSettings(url=url), media)
    np.testing.assert_allclose(warm, warmth(latents, PROMPTS), rtol=1e-5)
    np.testing.assert_allclose(shown, pictures(8, 12).mean(axis=(1, 2, 3)))
    assert asked == [{"latents"}, {"media"}]


@pytest.mark.parametrize("shape", [(80, 600, 600), (10, 40, 200, 200)], ids=["pictures", "clips"])
def test_another_service_is_asked_for_no_more_than_it_takes(shape: tuple[int, ...]) -> None:
    asked = []

    async def score(request: ScoreRequest) -> ScoreReply:
        asked.append(len(request.media))
        return ScoreReply({"far": request.media.pictures.reshape(len(request.media), -1)[:, 0].astype(float)})

    media = np.zeros((*shape, 3), np.uint8)
    media.reshape(len(media), -1)[:, 0] = np.arange(len(media))
    with served(score) as url:
        found = scores("far", RewardSettings(url=url), media, [f"prompt {i}" for i in range(len(media))])
    assert found.tolist() == list(range(len(media)))
    assert sum(asked) == len(media) > max(asked)


@pytest.mark.parametrize("text", ["x", '\\"é\n\x7f🎈'], ids=["plain", "escaped"])
def test_large_fields_go_in_requests_that_are_accepted(text: str) -> None:
    asked = []

    async def score(request: ScoreRequest) -> ScoreReply:
        asked.append(len(request.media))
        return ScoreReply({"far": np.array([prompt.fields["place"] for prompt in request.prompts], float)})

    def prompts(count: int, size: int) -> list[str]:
        field = text * (size // len(json.dumps(json.dumps(text))[3:-3]))
        return [Prompt("a", {"place": place, "source": field}) for place in range(count)]

    media = np.zeros((16, 8, 8, 3), np.uint8)
    with served(score) as url:
        found = scores("far", RewardSettings(url=url), media, prompts(16, 300_000))
        with pytest.raises(NotScored, match="was refused by .* 413 .*the header takes .* at most") as told:
            scores("far", RewardSettings(url=url), media[:1], prompts(1, 5_000_000))
    assert found.tolist() == list(range(16))
    assert asked == [13, 3]
    assert told.value.final


def test_a_service_that_stays_silent_or_refuses_gives_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_WAIT", 0.01)

    async def score(request: ScoreRequest) -> ScoreReply:
        raise RuntimeError("the model is away")

    with served(score) as url, pytest.raises(NotScored, match="reward 'far' had no score from http.*503.*") as told:
        scores("far", RewardSettings(url=url), pictures(8, 8))
    assert told.value.final
    with pytest.raises(NotScored, match="reward 'far' had no score"):
        scores("far", RewardSettings(url=url), pictures(8, 8))
    with served(score, token="other") as url, pytest.raises(NotScored, match="was refused by .* 401"):
        scores("far", RewardSettings(url=url), pictures(8, 8))


def test_batched_requests_ask_another_service_as_often_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_WAIT", 0.01)
    asked = []

    async def score(request: ScoreRequest) -> ScoreReply:
        asked.append(len(request.media))
        raise RuntimeError("the model is away")

    with served(score) as url:
        replica = Replica("far", {"far": RewardSettings(url=url)}, RewardPoolSettings())
        replies = at_once(replica.score(Media(pictures(8, 8)), PROMPTS, id) for id in "abc")
    assert asked == [3 * len(PROMPTS)] * remote.REQUEST_ATTEMPTS
    assert all(isinstance(reply, NotScored) and reply.final for reply in replies)


def test_the_example_of_a_video_reward_serves_clips() -> None:
    path = ROOT / "examples" / "video_reward.py"
    spec = importlib.util.spec_from_file_location("video_reward", path)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    clips = np.zeros((2, 3, 4, 4, 3), np.uint8)
    clips[1, 1] = 255
    with serving(example.application()) as url:
        assert scores("motion", RewardSettings(url=url), clips, ["a", "b"]).tolist() == [0.0, 1.0]
        with pytest.raises(NotScored, match="was refused by .* 422 .*motion wants clips of two frames or more") as told:
            scores("motion", RewardSettings(url=url), clips[:, :1], ["a", "b"])
    assert told.value.final
