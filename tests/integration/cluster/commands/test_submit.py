"""Submitting: whom it asks, what it tells, and the package that is sent along."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.benchmarks.support.local_cluster import free_port
from branchgrpo.cluster import cli
from branchgrpo.cluster.commands.submit import connect, follow, stage_package
from branchgrpo.proto.errors import RunFailed
from branchgrpo.proto.recipe import save_recipe
from support import Settings

Submit = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_stops_following_is_told_that_the_run_goes_on(
    signum: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Client:
        def get_address(self) -> str:
            return "http://head:8265"

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "iteration 1\n"
            os.kill(os.getpid(), signum)
            await asyncio.sleep(60)

    monkeypatch.setattr("branchgrpo.cluster.on_ray.address.use_dashboard", lambda address: None)
    monkeypatch.setattr("branchgrpo.cluster.commands.submit.check", lambda settings: None)
    monkeypatch.setattr("branchgrpo.cluster.commands.submit.connect", lambda address: Client())
    monkeypatch.setattr("branchgrpo.cluster.commands.submit.submit", lambda *given, **named: "branchgrpo-glyphs-1")
    monkeypatch.setattr(sys, "argv", ["branchgrpo", "submit", "glyphs"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 128 + signum
    told = capsys.readouterr().out
    assert "iteration 1\nthe run continues; follow it with: " in told
    assert "ray job stop branchgrpo-glyphs-1 --address http://head:8265" in told


def test_the_staged_package_is_importable_by_itself(tmp_path: Path) -> None:
    stage_package(tmp_path)
    code = (
        "import pathlib, branchgrpo, branchgrpo.cluster.on_ray.driver as loop, branchgrpo.proto.recipe as recipe\n"
        "train = recipe.load_recipe(pathlib.Path('glyphs')).prompts.train\n"
        "print(branchgrpo.__file__, loop.__file__, train, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert all(file.startswith(str(tmp_path)) for file in done.stdout.split())


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_an_address_without_a_cluster_is_one_clear_line(
    address: str, run_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    recipe = save_recipe(run_settings({"execution": "ray"}), tmp_path / "recipe")
    address = address.format(port=free_port())
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    monkeypatch.setattr(sys, "argv", ["branchgrpo", "submit", str(recipe)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"no Ray cluster can be reached at '{address}'" in line
    assert exit.value.code == 2


def test_a_lost_connection_is_told_with_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(BaseHTTPRequestHandler):
        """A job server that answers the first question only."""

        def do_GET(self) -> None:
            known = self.path == "/api/version"
            self.send_response(200 if known else 500)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": "2.60.0"}).encode() if known else b"")

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)  # `connect` sets it, and other tests must not see it
        with pytest.raises(RunFailed, match=f"lost the connection .*ray job logs mine --follow --address {address}"):
            follow(connect(address), "mine")
        server.shutdown()
