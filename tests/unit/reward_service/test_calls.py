"""How much a model is called with at once, in a replica and in one process."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np
import pytest
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.proto.settings import RewardPoolSettings, RewardSettings
from branchgrpo.reward_service import jpeg
from branchgrpo.reward_service.replica import Replica
from branchgrpo.reward_service.scorers import Scorers

REWARD = "jpeg_compressibility"
POOL = RewardPoolSettings(batch_pictures=4)
CLIPS = np.random.default_rng(0).integers(0, 256, (6, 5, 8, 8, 3), np.uint8)


def by_replica(media: Media, prompts: Sequence[str]) -> ScoreReply:
    reply = asyncio.run(Replica(REWARD, {REWARD: RewardSettings()}, POOL).score(media, prompts, ""))
    assert isinstance(reply, ScoreReply)
    return reply


def in_process(media: Media, prompts: Sequence[str]) -> ScoreReply:
    return Scorers({REWARD: RewardSettings()}, pools={REWARD: POOL}).score(ScoreRequest(media, prompts, [REWARD]))


@pytest.mark.parametrize("scored", [by_replica, in_process])
def test_frames_count_as_pictures_of_a_call(
    scored: Callable[[Media, Sequence[str]], ScoreReply], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    score = jpeg.compressibility

    def recorded(pictures: np.ndarray, prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
        assert len(pictures) == len(prompts)
        calls.append(list(prompts))
        return score(pictures, prompts)

    monkeypatch.setattr(jpeg, "compressibility", recorded)
    for media, prompts in ((Media(CLIPS), list("abcdef")), (Media(CLIPS[0]), list("abcde"))):
        calls.clear()
        found = scored(media, prompts).scores[REWARD]
        alone = [score(clip.pictures.reshape(-1, 8, 8, 3), ["p"] * media.frames)[REWARD].mean() for clip in media]
        np.testing.assert_array_equal(found, alone)
        assert max(map(len, calls)) == POOL.batch_pictures
        assert [*chain.from_iterable(calls)] == [prompt for prompt in prompts for _ in range(media.frames)]
