"""What goes to log.txt, what of it to the terminal, and how a run tells of itself."""

import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.state import read_state
from branchgrpo.cluster.run.stop import Stopped
from branchgrpo.cluster.run.terminal import LineStream
from branchgrpo.proto.errors import ProcessLost
from rich.console import Console
from support import Settings

# As Ray prints them in the driver.
NOISE = (
    "\x1b[33m(raylet)\x1b[0m A worker died or was killed while executing a task by an unexpected system error.",
    "\x1b[36m(RolloutActor pid=12)\x1b[0m /site-packages/torch/x.py:3: UserWarning: nothing of interest",
    "\x1b[36m(pid=9, ip=10.0.0.2)\x1b[0m Traceback (most recent call last):",
    "2026-11-25 10:00:00,000\tWARNING serve.py:12 -- a replica is slow",
)
WARNING = (
    "\x1b[36m(Controller pid=7)\x1b[0m WARNING branchgrpo.cluster.on_ray.worker_pool: rollout_workers: worker 7 "
    "is lost "
    "[repeated 3x across cluster] (Ray deduplicates logs by default.)"
)


def test_noise_is_in_the_log_and_faults_in_the_terminal_too(
    run_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    display = RunDisplay(Console(file=sys.stdout))
    with display.recording(tmp_path, run_settings()):
        for line in (*NOISE, WARNING, WARNING):
            print(line, file=sys.stderr)
        print("\x1b[36m(ServeReplica:branchgrpo-x:mine pid=5)\x1b[0m what my reward prints")
        logging.getLogger("branchgrpo.cluster.on_ray.pools").warning("a node is about to go\nin a minute")
        try:
            raise ValueError("a detail")
        except ValueError:
            logging.getLogger("some.library").warning("it went wrong", exc_info=True)
        display.evaluation(2, {"[red]ocr": 0.5})
        display.tell_loss(ProcessLost("process 9 died\nThe actor is dead because of many things"), 2)
    shown, error = capsys.readouterr()
    assert error == ""
    assert shown.splitlines() == [
        "rollout_workers: worker 7 is lost",
        "what my reward prints",
        "a node is about to go",
        "in a minute",
        "it went wrong",
        "evaluation after iteration 2: [red]ocr 0.500",
        "process 9 died; restarting all processes from iteration 2",
    ]
    log = (tmp_path / "log.txt").read_text()
    assert "\x1b" not in log
    for part in ("(raylet) A worker died", "nothing of interest", "a replica is slow", "ValueError: a detail"):
        assert part in log
    lines = log.splitlines()
    assert all(line[:4].isdecimal() and line[20:27].strip() in ("INFO", "WARNING") for line in lines)
    assert next(line for line in lines if "worker 7" in line)[20:27] == "WARNING"


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (None, "finished", None),
        (Stopped(15, "stopped after iteration 3"), "stopped", None),
        (RuntimeError("the reward is broken"), "failed", "the reward is broken"),
        (KeyError("x"), "failed", "'x'"),
    ],
)
def test_how_a_run_ends_is_kept(
    error: Exception | None, state: str, told: str | None, run_settings: Settings, tmp_path: Path
) -> None:
    for _ in range(2):
        ends = pytest.raises(type(error)) if error else nullcontext()
        with ends, RunDisplay(Console(quiet=True)).recording(tmp_path, run_settings()):
            assert json.loads((tmp_path / "state.json").read_text())["state"] == "starting"
            if error:
                raise error
    found = read_state(tmp_path)
    assert (found["state"], found["error"], found["drivers"]) == (state, told, 2)
    assert not error or str(error) in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (["one\ntw", "o\n", "three"], ["one", "two", "three"]),
        (["\r10%", "\r20%", "\r30%", "\nnext\n"], ["30%", "next"]),
        (["\r10%\r", "20%\r", "\r"], ["20%"]),
        (["one\r\n", "two\r", "\n"], ["one", "two"]),
        ([], []),
    ],
)
def test_lines_are_those_that_a_terminal_would_show(written: list[str], lines: list[str]) -> None:
    seen: list[str] = []
    stream = LineStream(seen.append, sys.stdout)
    for text in written:
        assert stream.write(text) == len(text)
    stream.finish()
    stream.finish()
    assert seen == lines
