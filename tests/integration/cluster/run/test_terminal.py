"""Output that nobody reads any more, or that can't be written, is no reason to end."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from branchgrpo.cluster.run.state import read_state
from support import GLYPHS, Settings, command, recipe_in

PRINT = """
import sys
from branchgrpo.cluster.run.terminal import lasting_output
with lasting_output():
    for _ in range(3):
        print("x" * 2**17, flush=True)
    print("alive", file=sys.stderr)
"""


def test_a_closed_pipe_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", PRINT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("alive\n", 0)


def test_a_full_disk_is_no_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", PRINT], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.stderr, done.returncode) == ("alive\n", 0)


def test_what_is_written_arrives_whole() -> None:
    done = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True)
    assert done.stdout == ("x" * 2**17 + "\n") * 3


def test_a_run_goes_on_when_its_output_is_gone(run_settings: Settings, tmp_path: Path) -> None:
    """As when a terminal is closed, which sends SIGHUP too, and with it a pipe that takes the errors."""
    settings = run_settings({**GLYPHS, "iterations": 1, "schedule": {"steps": 3, "splits": {0: 2}}})
    folder = settings.runs / settings.name
    (ours, terminal), (unread, pipe) = pty.openpty(), os.pipe()
    process = subprocess.Popen(
        command("train", recipe_in(tmp_path, settings)), stdout=terminal, stderr=pipe, start_new_session=True
    )
    for end in (terminal, pipe, unread):
        os.close(end)
    told = b""
    while b"evaluation after iteration 0" not in told and process.poll() is None:
        told += os.read(ours, 4096)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=240) == 0, told.decode()
    assert read_state(folder)["state"] == "finished"
    assert json.loads((folder / "summary.json").read_text())["iterations"] == 1
    log = (folder / "log.txt").read_text()
    assert "iteration    1  ocr" in log
    assert "Traceback" not in log
