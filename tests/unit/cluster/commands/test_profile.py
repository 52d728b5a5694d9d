"""`branchgrpo profile`: spans and operations on one axis, and runs that it can't look into."""

import json
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.commands.profile import chrome_with_operations, running, spans
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.iteration_trace import IterationTrace, Span
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.profiling import Component, ProfileRequest
from branchgrpo.proto.recipe import save_recipe
from rich.console import Console
from support import Settings


def test_operations_of_profiles_stand_below_their_process() -> None:
    start = 1_790_000_000.25
    span = Span("worker host:7", "rollout", "rollout_workers", "forward", start + 1, start + 2)

    def profile(process: str, seconds: float) -> dict[str, Any]:
        place = {"pid": 7, "tid": 9}
        return {
            "branchgrpo_process": process,
            "baseTimeNanoseconds": 1_790_000_000_000_000_000,
            "traceEvents": [
                {"ph": "M", "name": "process_name", "ts": 0, "args": {"name": "python"}, **place},
                {"ph": "M", "name": "thread_name", "ts": 0, "args": {"name": "thread 9"}, **place},
                {"ph": "X", "name": "aten::mm", "cat": "cpu_op", "ts": 0.25e6 + seconds * 1e6, "dur": 10.0, **place},
                {"ph": "s", "name": "fwdbwd", "cat": "fwdbwd", "id": 1, "ts": 0.25e6 + seconds * 1e6, **place},
                {"ph": "X", "name": "Profiler", "cat": "Trace", "ts": 0, "dur": 1, "pid": "Spans", "tid": "Profiler"},
            ],
        }

    trace = IterationTrace(1, start, start + 3, [span])
    given = profile("worker host:7", 1.5), profile("worker host:7", 1.75), profile("unseen host:8", 2.5)
    events = chrome_with_operations(trace, given)["traceEvents"]
    names = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
    found = [(event["pid"], event["ts"]) for event in events if event["name"] == "aten::mm"]
    own, unseen = names["worker host:7"], names["unseen host:8"]
    assert [pid for pid, _ in found] == [own, own, unseen]
    assert [ts for _, ts in found] == pytest.approx([1.5e6, 1.75e6, 2.5e6], abs=1)
    (forward,) = (event for event in events if event["name"] == "forward")
    assert (forward["pid"], forward["ts"]) == (own, pytest.approx(1e6, abs=1))
    assert len({event["id"] for event in events if event["name"] == "fwdbwd"}) == 3
    assert {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"} == {
        (event["pid"], event["tid"]) for event in events if event["name"] == "aten::mm"
    }
    assert not any(event["name"] == "Profiler" for event in events)


def test_what_was_sampled_ahead_has_its_spans_too(tmp_path: Path) -> None:
    times = {"iteration": [(0, 10, 1), (10, 20, 2)], "forward": [(2, 3, 1), (8, 9, 2), (12, 13, 3)]}
    lines = [
        {
            "process": "p",
            "component": "rollout",
            "pool": "rollout_workers",
            "name": name,
            "start": 1000.0 + start,
            "end": 1000.0 + end,
            "attributes": {"iteration": iteration},
        }
        for name, each in times.items()
        for start, end, iteration in each
    ]
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "p.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    order = ProfileRequest(1, (Component.ROLLOUT,)).order(tmp_path / "trace" / "profile", 1, 9)
    for begin, start, expected in ((1008.0, 1000.0, {1, 2, 3}), (1012.0, 1010.0, {3})):
        found = spans(order, begin)
        assert {span.attributes["iteration"] for span in found.spans if span.name == "forward"} == expected
        assert (found.start, found.end) == (start, 1020.0)


def test_a_run_that_can_not_be_profiled_says_why(run_settings: Settings) -> None:
    settings = run_settings()
    with RunFolder.create(settings) as run, RunDisplay(Console(quiet=True)).recording(run.path, settings):
        assert running(str(run.path), None) == run.path
        save_recipe(run_settings({"logging.trace": False}), run.path)
        with pytest.raises(InputError, match=r"writes no spans \(logging\.trace is false\)"):
            running(str(run.path), None)
        save_recipe(run_settings({"execution": "ray"}), run.path)
        with pytest.raises(InputError, match="is about to start"):
            running(str(run.path), None)
        run.append("metrics", {})  # or the folder would be gone
    with pytest.raises(InputError, match="isn't running"):
        running(str(run.path), None)
