"""Profiling a run in one process: requests, and what becomes of them."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.profile_file import FILE, FileProfiling, ProfiledTimeline, profile_in_one_process
from branchgrpo.proto.errors import InputError, RunFailed
from branchgrpo.proto.profiling import Component, ProfileOrder, ProfileRequest
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.tracing import start_tracing, stop_tracing
from rich.console import Console
from support import Settings, until

Ask = Callable[[Path, int], Future[ProfileOrder]]


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Starts a command that has so many iterations profiled, their sampling alone."""
    with ThreadPoolExecutor() as pool:

        def asked(run: Path, iterations: int) -> Future[ProfileOrder]:
            answer = pool.submit(profile_in_one_process, run, ProfileRequest(iterations, (Component.ROLLOUT,)))
            until((run / "trace" / FILE).exists, 10)
            return answer

        yield asked


@contextmanager
def live(settings: RunSettings) -> Iterator[Path]:
    """The folder of a run whose driver is this process."""
    display = RunDisplay(Console(quiet=True))
    with (
        RunFolder.create(settings) as folder,
        display.recording(folder.path, settings),
        display.iterating(0, settings.iterations),
    ):
        yield folder.path


def profiled(profiling: FileProfiling, numbers: range) -> list[int]:
    """The iterations, of those with these numbers, in which sampling is profiled and learning isn't."""
    found = []
    for number in numbers:
        with profiling.iteration(number):
            assert not profiling.order(Component.LEARNER, number)
            found += [number] if profiling.order(Component.ROLLOUT, number) else []
    return found


def test_a_request_is_for_the_next_iterations(run_settings: Settings, ask: Ask) -> None:
    settings = run_settings({"iterations": 9})
    with live(settings) as run:
        profiling = FileProfiling(settings)
        assert profiled(profiling, range(1, 4)) == []
        answer = ask(run, 2)
        with pytest.raises(InputError, match="being profiled already; ask again"):
            profile_in_one_process(run, ProfileRequest(1, (Component.LEARNER,)))
        assert profiled(profiling, range(4, 8)) == [4, 5]
        assert (answer.result().first, answer.result().last) == (4, 5)
        answer = ask(run, 5)
        assert profiled(profiling, range(8, 10)) == [8, 9]
        assert (answer.result().first, answer.result().last) == (8, 9)


def test_a_request_that_is_given_up_leaves_nothing(run_settings: Settings, ask: Ask) -> None:
    settings = run_settings({"iterations": 9})
    with live(settings) as run:
        profiling = FileProfiling(settings)
        interrupted = ask(run, 5)
        assert profiled(profiling, range(1, 3)) == [1, 2]
        (run / "trace" / FILE).unlink()
        with pytest.raises(RunFailed, match="ended, or restarted"):
            interrupted.result()
        assert profiled(profiling, range(3, 6)) == [3]
        dropped = ask(run, 2)
        assert profiled(profiling, range(6, 7)) == [6]
        profiling.drop()  # the run goes back to a checkpoint
        with pytest.raises(RunFailed, match="ended, or restarted"):
            dropped.result()
        assert profiled(profiling, range(5, 8)) == []
        assert not list(run.rglob(".partial-*"))


def test_a_run_that_ends_ends_the_wait(run_settings: Settings, ask: Ask) -> None:
    settings = run_settings({"iterations": 9})
    with live(settings) as run:
        (run / "metrics.jsonl").touch()  # or the folder would be gone
        answer = ask(run, 2)
        assert profiled(FileProfiling(settings), range(8, 9)) == [8]
    with pytest.raises(RunFailed, match="ended, or restarted"):
        answer.result()
    assert not list(run.rglob(".partial-*"))


def test_a_killed_commands_request_is_no_later_runs(run_settings: Settings, ask: Ask) -> None:
    settings = run_settings({"iterations": 9})
    with live(settings) as run:
        (run / "metrics.jsonl").touch()
        answer = ask(run, 2)
        content = (run / "trace" / FILE).read_bytes()
    with pytest.raises(RunFailed):
        answer.result()
    (run / "trace" / FILE).write_bytes(content)
    with RunFolder.resume(settings):
        assert profiled(FileProfiling(settings), range(1, 9)) == []


def test_there_is_nothing_to_profile_in_the_last_iteration(run_settings: Settings) -> None:
    settings = run_settings({"iterations": 3})
    lines = [{"iteration": number, "started": 0.0, "seconds": 1.0, "rewards": {}} for number in (1, 2)]
    with live(settings) as run:
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(InputError, match="iteration 3 of 3 has begun; there is none left"):
            profile_in_one_process(run, ProfileRequest(1, (Component.ROLLOUT,)))


def test_each_component_has_its_own_seconds(tmp_path: Path) -> None:
    order = ProfileOrder(tmp_path / "traces", tuple(Component), 1, 1, everyone=False, seconds=1e-9)
    timeline, named = ProfiledTimeline(order.of), []
    start_tracing(tmp_path / "trace", "in_process", "in_process")
    try:
        for phase, work in (
            ("rollout", torch.sin),
            ("publishing", torch.tan),
            ("rollout", torch.cos),
            ("learning", torch.exp),
        ):
            with timeline.phase(phase):
                work(torch.ones(3))
    finally:
        stop_tracing()
    for file in (tmp_path / "traces").iterdir():
        events = json.loads(file.read_text())["traceEvents"]
        named += [event["name"] for event in events if event.get("cat") == "cpu_op"]
    assert {"aten::sin", "aten::exp"} <= set(named)
    assert not {"aten::cos", "aten::tan"} & set(named)
    assert timeline.spans.keys() == {"rollout", "publishing", "learning"}
