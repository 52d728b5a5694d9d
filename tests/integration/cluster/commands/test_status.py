"""How runs go, as `branchgrpo status` tells it from whatever is left of them."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer

import psutil
import pytest
from branchgrpo.benchmarks.support.local_cluster import free_port
from branchgrpo.cluster import cli
from branchgrpo.cluster.commands import status
from branchgrpo.cluster.commands.status import find, find_all, look
from branchgrpo.cluster.commands.status_tables import duration
from branchgrpo.cluster.on_ray.run_address import RunAddress
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.state import RunState
from branchgrpo.cluster.run.status import status_of
from branchgrpo.proto.errors import InputError
from support import Settings

DRIVE = """
import sys, time
from pathlib import Path
from branchgrpo.cluster.run.driver_lock import driver_lock
from branchgrpo.cluster.run.state import RunState
folder = Path(sys.argv[1])
with driver_lock(folder):
    state = RunState(folder, "run", "in_process", 10)
    state.change("running")
    state.change("recovering", error="a process was lost")
    state.change("running")
    print("driving", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["silent", "drops what comes"])
def unreachable(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address where connections are taken and nothing is answered, or where they aren't even taken."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(8 if request.param == "silent" else 0)
        for _ in range(0 if request.param == "silent" else 2):  # more than it has room for
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def add_iteration(folder: RunFolder, iteration: int, seconds: float, reward: float) -> None:
    folder.append(
        "metrics",
        {"iteration": iteration, "started": 1000.0, "seconds": seconds, "rewards": {"ocr": {"mean": reward}}},
    )


@pytest.fixture
def folder(run_settings: Settings) -> Iterator[RunFolder]:
    """A run of ten iterations, of which three are done."""
    with RunFolder.create(run_settings({"iterations": 10})) as folder:
        for iteration, seconds in enumerate((9.0, 2.0, 4.0), 1):
            add_iteration(folder, iteration, seconds, iteration / 10)
        folder.append("evaluations", {"iteration": 2, "ocr": 0.6})
        folder.checkpoint(2).mkdir(parents=True)
        RunState(folder.path, "run", "in_process", 10)
        yield folder


@pytest.fixture
def driver(folder: RunFolder, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that drives a run, and the run's folder."""
    run = tmp_path / "driven"
    shutil.copytree(folder.path, run)
    process = subprocess.Popen([sys.executable, "-c", DRIVE, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "driving\n"
    yield process, run
    process.kill()
    process.wait()


def test_a_live_run_its_copy_and_what_is_left_when_it_is_killed(
    driver: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, folder = driver
    live = status_of(folder)
    assert (live.state, live.command, live.recoveries) == ("running", None, 1)
    assert live.driver
    assert f"process {process.pid}" in live.driver
    assert (live.iteration, live.iterations, live.checkpoint, live.rewards) == (3, 10, 2, {"ocr": 0.3})
    assert (live.held_out, live.held_out_iteration) == ({"ocr": 0.6}, 2)
    assert (live.seconds_per_iteration, live.seconds_left, live.iteration_ended) == (4.0, 28.0, 1004.0)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert status_of(copy).state == "lost"
    process.send_signal(signal.SIGKILL)
    process.wait()
    lost = status_of(folder)
    assert (lost.state, lost.seconds_left) == ("lost", None)
    assert lost.since
    assert time.time() - 60 < lost.since <= time.time()
    assert lost.command == f"branchgrpo train {folder} --resume"


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_how_a_run_has_ended(state: str, run_settings: Settings, tmp_path: Path) -> None:
    with RunFolder.create(run_settings()) as folder:
        add_iteration(folder, 1, 1.0, 0.5)
        ended = RunState(folder.path, "run", "in_process", 2)
        ended.change(state, error="why" if state == "failed" else None)  # type: ignore[arg-type]
    found = status_of(folder.path)
    assert (found.state, found.error) == (state, "why" if state == "failed" else None)
    assert (found.command is None) == (state == "finished")
    with RunFolder.resume(run_settings({"iterations": 5})):
        assert status_of(folder.path).state == "starting", "what an earlier driver wrote isn't of this one"


def test_a_folder_of_an_older_version_and_a_broken_one(run_settings: Settings) -> None:
    with RunFolder.create(run_settings()) as folder:
        folder.append("metrics", {"iteration": 1})
        with (folder.path / "metrics.jsonl").open("ab") as file:
            file.write(b"[]\n{\xff\n")
    assert status_of(folder.path).state == "unknown"
    (folder.path / "state.json").write_text("{")
    (folder.path / "summary.json").write_text("{}")
    assert status_of(folder.path).state == "finished"


class Controller(BaseHTTPRequestHandler):
    """Tells what a run's controller tells."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"path": self.path}).encode())

    def log_message(self, *args: object) -> None:
        pass


def test_a_controller_is_asked_and_a_silent_one_not_waited_for(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with HTTPServer(("127.0.0.1", 0), Controller) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        RunAddress("run", None, f"http://127.0.0.1:{server.server_port}").write(folder.path)
        assert look(folder.path).controller == {"path": "/status"}
        server.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        RunAddress("run", None, f"http://127.0.0.1:{silent.getsockname()[1]}").write(folder.path)
        found = look(folder.path)
    assert (found.state, found.controller, found.iteration) == ("starting", None, 3)
    assert found.unreachable
    assert "can't be asked" in found.unreachable


def test_another_program_at_a_controller_s_port_is_told(folder: RunFolder) -> None:
    class Other(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 mail.example ESMTP\r\n")

    with TCPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        RunAddress("run", None, f"http://127.0.0.1:{server.server_address[1]}").write(folder.path)
        assert "can't be asked" in (look(folder.path).unreachable or "")
        server.shutdown()


def test_a_cluster_that_is_silent_is_told_when_the_time_is_over(unreachable: str, folder: RunFolder) -> None:
    before = psutil.Process().children()
    with pytest.raises(InputError, match=f"the Ray cluster at '{unreachable}' gave no answer in"):
        find("run", folder.path.parent, unreachable)
    assert psutil.Process().children() == before, "what has asked it is ended"


def test_a_silent_cluster_hides_no_runs(unreachable: str, folder: RunFolder) -> None:
    found, complaints = find_all(folder.path.parent, unreachable)
    assert [run.name for run in found] == ["run"]
    assert len(complaints) == 1
    assert f"the Ray cluster at '{unreachable}' gave no answer in" in complaints[0]


def test_all_that_is_asked_has_one_deadline(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "ALL_SECONDS", 0.0)
    monkeypatch.setattr(Path, "is_file", lambda path: time.sleep(1) or True)
    with pytest.raises(InputError, match=r"no answer in 0\.0 s"):
        find("run", folder.path.parent, None)
    with pytest.raises(InputError, match=r"gave no answer in 0\.0 s"):
        status.ask_cluster("127.0.0.1:1")


def test_the_command_lists_runs_and_finds_one_by_its_name(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = folder.path.parent
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("branchgrpo.cluster.commands.status.nodes_here", list)
    monkeypatch.setattr(status, "ALL_SECONDS", status.ALL_SECONDS + 600)  # for several commands, on a busy machine
    (runs / "no run").mkdir()
    assert find("run", runs, None).folder == str(folder.path)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["branchgrpo", "status", "--runs", str(runs), *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    assert [found["name"] for found in json.loads(call("--json"))] == ["run"]
    assert json.loads(call("run", "--json"))["state"] == "starting"
    assert "3 of 10" in call()
    shown = call("run")
    assert "iteration      3 of 10" in shown
    assert "held-out       ocr 0.600 (after iteration 2)" in shown
    folder.append("changes", {"iteration": 4, "setting": "learner.kl_weight", "before": 0.0, "now": 0.1})
    folder.append("changes", {"iteration": 3, "went_back_from": 5, "to": 2})
    folder.append("changes", {"iteration": 7, "fell_from": 2 / 3, "to": 1 / 3, "best": 4, "pace": 0.5})
    shown = call("run")
    assert "changed        learner.kl_weight: 0.0 → 0.1, from iteration 4 on" in shown
    assert "changed        went back from iteration 5 to 2" in shown
    assert "changed        held-out reward fell from 0.667 to 0.333: weights of iteration 4 again" in shown


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.25, "0.2 s"), (12, "12 s"), (119, "119 s"), (150, "2.5 min"), (7200, "2.0 h"), (40000, "11 h"), (2e5, "2.3 d")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
