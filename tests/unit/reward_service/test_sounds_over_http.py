"""Sounds over HTTP: as WAV files, and as tensors, alone or with clips."""

from collections.abc import Iterator

import numpy as np
import pytest
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.proto.wav import wav
from branchgrpo.reward_service.app import create_app
from branchgrpo.reward_service.parsing import Limits
from fastapi.testclient import TestClient
from score_requests import post_bytes, post_form, refused

RATE = 8_000
SOUNDS = np.random.default_rng(0).integers(-9_000, 9_000, (2, 2, 400), np.int16)
CLIPS = np.zeros((2, 2, 8, 8, 3), np.uint8)


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A service that scores loudness, and rates; it must still do so at the end."""

    async def score(request: ScoreRequest) -> ScoreReply:
        media = request.media
        loud = (media.waveforms.astype(float) ** 2).mean(axis=(1, 2))
        return ScoreReply({"loud": loud + media.sample_rate, "frames": np.full(len(media), media.frame_rate)})

    own = TestClient(create_app(score, ["loud", "frames"], Limits(pictures=4, bytes=20_000)))
    yield own
    assert post_form(own, [wav(SOUNDS[0], RATE)], ["a"], reward="loud").status_code == 200


EXPECTED = [RATE + ((sound / 32767) ** 2).mean() for sound in SOUNDS]


def test_wav_files_and_tensors_are_scored_alike(client: TestClient) -> None:
    answer = post_form(client, [wav(sound, RATE) for sound in SOUNDS], ["a", "b"], reward="loud")
    assert answer.json()["scores"]["loud"] == pytest.approx(EXPECTED)
    for media, rate in ((Media(sound=SOUNDS, sample_rate=RATE), 16), (Media(CLIPS, SOUNDS, 24.0, RATE), 24)):
        reply = post_bytes(client, ScoreRequest(media, ["a", "b"], ["loud", "frames"]).to_bytes())
        found = ScoreReply.from_bytes(reply.content).scores
        np.testing.assert_allclose(found["loud"], EXPECTED)
        assert found["frames"].tolist() == [rate, rate]


def test_what_is_no_sound_is_refused(client: TestClient) -> None:
    whole = wav(SOUNDS[0], RATE)
    refused(post_form(client, [whole[:-40]], ["a"]), 422, "media[0]")
    refused(post_form(client, [b"RIFF" + b"x" * 60], ["a"]), 422, "media[0]")
    refused(post_form(client, [whole, wav(SOUNDS[0], 2 * RATE)], ["a", "b"]), 422, "one length and rate")
    refused(post_form(client, [whole, wav(SOUNDS[0, :, :9], RATE)], ["a", "b"]), 422, "one length and rate")
    refused(post_form(client, [whole], ["a", "b"]), 422, "1 media came with 2 prompts")
    refused(post_form(client, [whole] * 5, ["a"] * 5), 413)
    long = Media(sound=np.zeros((1, 1, 11_000), np.int16))
    refused(post_bytes(client, ScoreRequest(long, ["a"], ["loud"]).to_bytes()), 413)
    body = ScoreRequest(Media(sound=SOUNDS), ["a", "b"], ["loud"]).to_bytes()
    refused(post_bytes(client, body.replace(b"44100", b"nan.0")), 422, "nan.0")


@pytest.mark.parametrize("rate", [1, 7_999, 768_001, 10_000_019])
def test_sounds_of_odd_rates_are_refused(client: TestClient, rate: int) -> None:
    named = ["sample_rate", str(rate), "8000 to 768000"]
    refused(post_form(client, [wav(SOUNDS[0], rate)], ["a"]), 422, *named)
    for pictures in (None, CLIPS):
        media = Media(pictures, SOUNDS, sample_rate=rate)
        refused(post_bytes(client, ScoreRequest(media, ["a", "b"], ["loud"]).to_bytes()), 422, *named)
