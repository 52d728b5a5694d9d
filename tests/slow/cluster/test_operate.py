"""Runs and reward services as a user handles them: looked at, scaled, stopped, resumed."""

import asyncio
import io
import signal
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray
from branchgrpo.benchmarks.speed.serving import crowd
from branchgrpo.benchmarks.support.local_cluster import free_port
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.on_ray.reward_deployment import start_serve
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service.scorers import Scorers
from operated_runs import start, stop_and_resume, undisturbed
from PIL import Image
from ray import serve
from support import RECIPES, Settings, Weights, until


@pytest.fixture(scope="module")
def plain(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return undisturbed(settings_in, tmp_path_factory.mktemp("plain"))


@pytest.mark.timeout(900)
def test_a_run_is_watched_scaled_stopped_and_resumed(plain: Weights, run_settings: Settings, tmp_path: Path) -> None:
    stop_and_resume(signal.SIGTERM, plain, run_settings, tmp_path)


def test_runs_that_start_together_start_serve_once(head: str) -> None:
    @ray.remote(num_cpus=0)
    def begin(at: float) -> None:
        time.sleep(max(0.0, at - time.time()))
        start_serve()

    with connected(head):
        serve.shutdown()  # other tests may have started it
        ray.get([begin.remote(0.0) for _ in range(4)])  # four processes, all of them imported
        serve.shutdown()
        ray.get([begin.remote(time.time() + 1) for _ in range(4)])
        assert not serve.status().applications


def test_rewards_are_served_to_anyone_who_knows_the_token(tmp_path: Path) -> None:
    recipe = RECIPES / "glyphs.yaml"
    port = free_port()
    process = start(
        tmp_path, "serve-rewards", str(recipe), "--port", str(port), "name=served", BRANCHGRPO_TOKEN="secret"
    )
    log, url = tmp_path / "log", f"http://127.0.0.1:{port}"
    try:
        until(lambda: "/v1/score" in log.read_text() or process.poll() is not None, told=log.read_text)
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/v1/rewards").status_code == 401
        client = httpx.Client(headers={"Authorization": "Bearer secret"}, timeout=60)
        assert client.get(f"{url}/v1/rewards").json() == ["ocr", "ocr_exact"]
        assert "/v1/score" in httpx.get(f"{url}/openapi.json").json()["paths"]
        media = np.random.default_rng(0).integers(0, 256, (5, 32, 64, 3), np.uint8)
        media[0] = 255
        request = ScoreRequest(Media(media), ["123"] * 5, ["ocr", "ocr_exact"], "x")

        def post() -> httpx.Response:
            kind = {"content-type": "application/x-safetensors"}
            return client.post(f"{url}/v1/score", content=request.to_bytes(), headers=kind)

        answer = post()
        assert answer.status_code == 200
        expected = Scorers({"ocr": RewardSettings(), "ocr_exact": RewardSettings()}).score(request)
        reply = ScoreReply.from_bytes(answer.content)
        assert reply.id == "x"
        assert all(np.array_equal(reply.scores[name], expected.scores[name]) for name in expected.scores)
        png = io.BytesIO()
        Image.fromarray(media[0]).save(png, format="PNG")
        form = {"prompt": "123", "reward": "beauty"}
        wrong = client.post(f"{url}/v1/score", files={"media": ("a.png", png.getvalue())}, data=form)
        assert wrong.status_code == 422
        assert "beauty" in wrong.json()["error"]
        answers = asyncio.run(crowd(url, "secret", 1000))
        assert answers.pop("afterwards") == 200
        assert sum(answers.values()) == 1000
        assert set(answers) <= {"200", "429, Retry-After", "503, Retry-After"}
        assert answers["200"] >= 1
        assert post().status_code == 200
        discovery = log.read_text().split("discovery at")[1].split()[0]
        assert {target["labels"]["component"] for target in httpx.get(discovery).json()} >= {"reward"}
        process.send_signal(signal.SIGHUP)  # of a terminal that is closed; as SIGTERM
        assert process.wait(timeout=120) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
    until(lambda: not any(psutil.pid_exists(pid) for pid in family), 20, log.read_text)
