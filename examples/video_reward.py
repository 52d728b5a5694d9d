"""A reward service of your own: any model behind the contract of docs/rewards.md.

Here the reward is `motion`, by how much neighbouring frames of a clip differ. Your model takes its place: load it once,
where `Motion` is made, and score `request.media.pictures` and `request.prompts` with it.

    python examples/video_reward.py 8000

and in the recipe: rewards: {motion: {weight: 1.0, url: "http://127.0.0.1:8000"}}
"""

import asyncio
import sys

import numpy as np
import uvicorn
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.reward_service.app import create_app
from branchgrpo.reward_service.parsing import Limits


class Motion:
    """Mean absolute difference of neighbouring frames, from 0 to 1."""

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """float64 [n] of uint8 [n, frames, height, width, 3]."""
        return np.abs(np.diff(clips.astype(np.float64), axis=1)).mean(axis=(1, 2, 3, 4)) / 255


def application() -> object:
    """The service, for uvicorn."""
    model = Motion()

    async def score(request: ScoreRequest) -> ScoreReply:
        if request.media.pictures is None or request.media.frames < 2:
            raise InputError(f"motion wants clips of two frames or more; each of these is a {request.media.kind}")
        scores = await asyncio.to_thread(model, request.media.pictures)
        return ScoreReply({"motion": scores}, request.id)

    # A clip of 81 frames at 480 x 832 takes 97 MB.
    return create_app(score, ["motion"], Limits(bytes=2**30, held=4 * 2**30, pictures=4096))


if __name__ == "__main__":
    uvicorn.run(application(), host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
