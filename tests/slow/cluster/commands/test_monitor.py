"""`branchgrpo monitor` follows a run wherever it goes, and ends with it."""

import json
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.benchmarks.support.local_cluster import free_port
from branchgrpo.cluster.on_ray.run_address import FILE, RunAddress
from branchgrpo.cluster.run.driver_lock import driver_lock
from branchgrpo.proto.recipe import save_recipe
from support import Settings, command, until


@contextmanager
def controller() -> Iterator[str]:
    """URL of a run's HTTP server as Prometheus sees it: it names itself as the only target."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host, port = self.server.server_address[:2]
            kind, body = "text/plain", "up_here 1\n"
            if self.path == "/sd":
                kind, body = "application/json", json.dumps([{"targets": [f"{host!s}:{port}"]}])
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus")
def test_monitor_follows_the_run_and_ends_with_it(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"name": "a run [1]+lr=3 (x)*?"})
    folder = settings.runs / settings.name
    save_recipe(settings, folder)
    port = free_port()

    def asked(path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)["data"]
            return found

    def targets() -> set[str]:
        try:
            found = asked("targets?state=active")["activeTargets"]
        except OSError:
            return set()
        return {f"http://{target['labels']['instance']}" for target in found if target["health"] == "up"}

    with controller() as first, controller() as second:
        with driver_lock(folder):
            RunAddress("run", None, first).write(folder)
            follow = command("monitor", folder, "--port", str(port))
            with (tmp_path / "log").open("w") as log:
                monitor = subprocess.Popen(follow, stdout=log, stderr=log, text=True)
            try:
                until(lambda: targets() == {first})
                assert asked("rules")["groups"]
                RunAddress("run", None, second).write(folder)
                until(lambda: targets() == {second})
            except BaseException:
                monitor.terminate()
                raise
        try:
            until(lambda: "the run's driver is gone" in (tmp_path / "log").read_text())
            with driver_lock(folder):
                RunAddress("run", None, first).write(folder)
                until(lambda: targets() == {first})
                (folder / FILE).unlink()
                assert monitor.wait(60) == 0
        finally:
            monitor.terminate()
    told = (tmp_path / "log").read_text()
    for line in (f"the run has moved to {second}", f"the run has moved to {first}", "the run has ended"):
        assert line in told
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    done = subprocess.run(follow, capture_output=True, text=True)
    assert (done.returncode, "isn't running on Ray" in done.stderr) == (2, True)
