"""The HTTP face with real OCR in a process of its own, as `branchgrpo serve-rewards` has it, with tight limits."""

import asyncio

import numpy as np
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service import http_server as server
from branchgrpo.reward_service.app import create_app
from branchgrpo.reward_service.parsing import Limits
from branchgrpo.reward_service.scorers import Scorers

TOKEN = "secret"
OCR = ("ocr", "ocr_exact")
MAX_BYTES = 200_000
UPLOAD_SECONDS = 3.0


def main() -> None:
    """Prints the port."""
    ocr = Scorers(dict.fromkeys(OCR, RewardSettings()), threads=1)

    async def score(request: ScoreRequest) -> ScoreReply:
        scores = {"mean": request.media.pictures.mean(axis=(1, 2, 3), dtype=np.float64)}
        read = [name for name in request.rewards if name in OCR]
        if read:  # a few milliseconds per picture
            asked = ScoreRequest(request.media, request.prompts, read, request.id)
            scores.update((await asyncio.to_thread(ocr.score, asked)).scores)
        return ScoreReply({name: scores[name] for name in request.rewards}, request.id)

    app = create_app(
        score,
        [*OCR, "mean"],
        Limits(pictures=8, bytes=MAX_BYTES, pixels=128 * 128, requests=8, upload_seconds=UPLOAD_SECONDS),
        token=TOKEN,
    )
    server.IDLE_SECONDS = 1.0
    listener = server.listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    asyncio.run(server.server(app).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
