"""Runs and reward services as a user handles them: looked at, scaled, stopped, resumed, two at once."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import ray
import torch
from branchgrpo.benchmarks.speed.serving import crowd
from branchgrpo.benchmarks.support.local_cluster import free_port
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.on_ray.reward_deployment import start_serve
from branchgrpo.cluster.on_ray.run_address import RunAddress
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service.scorers import Scorers
from PIL import Image
from ray import serve
from support import Settings, assert_bit_equal, command, recipe_in, until, weights

SMALL = {"cpus": 0.25, "threads": 1}
CHANGES: dict[str, Any] = {
    "threads": 1,
    "iterations": 6,
    "pools": {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"ocr": {**SMALL, "deterministic": True}}},
}
ALONE = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
"""The environment of a user without a cluster: Ray is started with its own defaults."""


def started(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A command in a session of its own, its output in `folder`/log."""
    log, env = (folder / "log").open("a"), ALONE | variables
    return subprocess.Popen(
        command(*arguments), env=env, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def done(run: Path) -> int:
    return len(RunFolder(run).lines("metrics"))


@pytest.fixture(scope="module")
def plain(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("plain")
    settings = settings_in(folder, CHANGES)
    subprocess.run(command("train", recipe_in(folder, settings)), check=True, capture_output=True)
    return weights(settings.runs / settings.name, 6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_run_is_watched_scaled_stopped_without_a_trace_and_resumed(
    signum: signal.Signals, plain: dict[str, torch.Tensor], run_settings: Settings, tmp_path: Path
) -> None:
    settings = run_settings({**CHANGES, "execution": "ray", "rewards.ocr.scorer": "faulty_scorers:waits_for_leave"})
    variables = {"PYTHONPATH": str(Path(__file__).parent), "BRANCHGRPO_TEST_FAULTS": str(tmp_path)}
    recipe, run = recipe_in(tmp_path, settings), settings.runs / settings.name
    shared_memory = set(os.listdir("/dev/shm"))
    process = started(tmp_path, "train", str(recipe), **variables)
    log = tmp_path / "log"
    try:
        until(lambda: (run / "ray.json").exists() or process.poll() is not None, told=log.read_text)
        status = subprocess.run(command("status", run), env=ALONE, capture_output=True, text=True, check=True)
        assert "rollout_workers" in status.stdout, status.stdout
        assert "run: starting for" in status.stdout or "run: running for" in status.stdout
        address = RunAddress.read(run).address
        assert address
        asked = subprocess.run(
            [sys.executable, "-m", "branchgrpo.cluster.on_ray.cluster_runs", address],
            env=ALONE,
            capture_output=True,
            text=True,
        )
        (told,) = json.loads(asked.stdout).values()
        assert (told["iterations"]["of"], len(told["pools"]["rollout_workers"])) == (6, 1), asked.stderr[-3000:]
        if signum == signal.SIGTERM:
            scale = command("scale", run, "--rollout-workers", "2")
            scaled = subprocess.run(scale, env=ALONE, capture_output=True, text=True)
            assert scaled.returncode == 0, scaled.stderr[-3000:]
        (tmp_path / "go").touch()
        until(lambda: done(run) >= 1 or process.poll() is not None, told=log.read_text)
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        assert len(family) > 8
        os.killpg(process.pid, signum)
        assert process.wait(timeout=240) == 128 + signum, log.read_text()[-3000:]
    finally:
        process.kill()
    assert "with a checkpoint" in log.read_text()
    until(lambda: not any(psutil.pid_exists(pid) for pid in family), 20, log.read_text)
    assert set(os.listdir("/dev/shm")) <= shared_memory
    assert not (run / "ray.json").exists()
    assert done(run) < 6

    gone = subprocess.run(command("status", run), env=ALONE, capture_output=True, text=True)
    assert (gone.returncode, "stopped since" in gone.stdout, "--resume" in gone.stdout) == (0, True, True), gone.stderr
    resume = command("train", recipe, "--resume")
    subprocess.run(resume, env=ALONE | variables, check=True, capture_output=True)
    assert_bit_equal(weights(run, 6), plain)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_runs_on_one_cluster_do_not_touch_each_other(
    plain: dict[str, torch.Tensor], run_settings: Settings, tmp_path: Path, head: str
) -> None:
    recipe = recipe_in(tmp_path, run_settings({**CHANGES, "execution": "ray"}))
    names = ("one", "two")
    runs = [
        subprocess.Popen(
            command("train", recipe, f"name={name}", "--address", head),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in names
    ]
    for process in runs:
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 0, out[-3000:]
    for name in names:
        assert_bit_equal(weights(run_settings().runs / name, 6), plain)


@pytest.mark.slow
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


@pytest.mark.slow
def test_rewards_are_served_to_anyone_who_knows_the_token(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "glyphs.yaml"
    port = free_port()
    process = started(
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
        request = ScoreRequest(media, ["123"] * 5, ["ocr", "ocr_exact"], "x")

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
