"""What `branchgrpo trace` makes of spans: a path whose pieces are known, idle time, lines that nest."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from branchgrpo.cluster.observability import trace
from branchgrpo.cluster.observability.trace import Span, chrome, critical_path, idle, innermost, lanes, read
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import LoggingSettings
from branchgrpo.proto.tracing import span, start_tracing, stop_tracing
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import Settings

START = 1000.0
PROCESSES = {
    "c": ("controller", "controller"),
    "w0": ("rollout", "rollout_workers"),
    "w1": ("rollout", "rollout_workers"),
    "ocr": ("reward", "ocr"),
    "l": ("learner", "learner"),
}


def made(process: str, name: str, start: float, end: float, **attributes: Any) -> Span:
    component, pool = PROCESSES[process]
    return Span(process, component, pool, name, START + start, START + end, attributes)


SPANS = [
    made("c", "iteration", 0, 10, iteration=3, processes={"rollout_workers": 3, "ocr": 1, "hps": 2, "learner": 1}),
    made("c", "scoring", 3, 7, part="3/0/14"),
    made("w0", "load weights", 0.5, 1, version=2),
    made("w0", "task", 1, 4, iteration=3, trees=[0]),
    made("w0", "forward", 1, 2, rows=4),
    made("w0", "decode", 2, 3, leaves=4),
    made("w0", "hand over", 3, 4, part="3/0/14"),
    made("w1", "task", 1, 2.5, iteration=3, trees=[1]),
    made("w1", "forward", 1, 2, rows=4),
    made("w1", "hand over", 2, 2.5, part="3/1/14"),
    made("ocr", "score", 2.6, 4.5, requests=["run/3/1/14"]),
    made("ocr", "score", 4.5, 7, requests=["run/3/0/14"]),
    made("l", "learn", 7.5, 9, iteration=3, trees=[0, 1]),
    made("l", "fetch", 7.6, 8),
    made("l", "forward and backward", 8, 9, rows=3),
    made("l", "publish", 9, 9.5, version=3),
]


def write(folder: Path, spans: list[Span]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in spans:
        with (folder / f"{one.process}.jsonl").open("a") as file:
            file.write(json.dumps(vars(one)) + "\n")


@pytest.fixture
def found(tmp_path: Path) -> trace.IterationTrace:
    write(tmp_path / "trace", SPANS)
    return read(tmp_path, None)


def test_the_critical_path_leads_through_what_each_span_waited_for(found: trace.IterationTrace) -> None:
    steps = [(step.name, round(step.start - START, 6), round(step.end - START, 6)) for step in critical_path(found)]
    assert steps == [
        ("start → rollout_workers: forward", 0, 1),
        ("rollout_workers: forward", 1, 2),
        ("rollout_workers: hand over", 2, 2.5),
        ("rollout_workers: hand over → ocr: score", 2.5, 2.6),
        ("ocr: score", 2.6, 4.5),
        ("ocr: score", 4.5, 7),
        ("ocr: score → learner: fetch", 7, 7.6),
        ("learner: fetch", 7.6, 8),
        ("learner: forward and backward", 8, 9),
        ("learner: publish", 9, 9.5),
        ("learner: publish → end", 9.5, 10),
    ]


def test_the_path_of_an_iteration_ends_with_its_weights_though_workers_sample_ahead(tmp_path: Path) -> None:
    ahead = [made("w1", "task", 5, 9.8, iteration=4, trees=[0]), made("w1", "forward", 5, 9.8, rows=4)]
    write(tmp_path / "trace", [*SPANS, *ahead])
    names = [step.name for step in critical_path(read(tmp_path, 3))]
    assert names[-3:] == ["learner: forward and backward", "learner: publish", "learner: publish → end"]


def test_lines_that_are_cut_off_or_broken_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "trace", SPANS)
    with next((tmp_path / "trace").iterdir()).open("ab") as file:
        file.write(b'{"process": "c"}\n[1]\n\xff\x00\x00\n{"process": "c", "compo')
    assert len(read(tmp_path, None).spans) == len(SPANS)


def test_idle_time_is_what_no_span_covers_and_what_was_spent_handing_over(found: trace.IterationTrace) -> None:
    uses = {use.pool: (use.processes, round(use.idle, 6), round(use.waited, 6)) for use in idle(found)}
    assert uses == {
        "rollout_workers": (3, (10 - 3.5 + 1) + (10 - 1.5 + 0.5) + 10, 1.5),
        "hps": (2, 20, 0),
        "ocr": (1, 10 - 4.4, 0),
        "learner": (1, 10 - 2, 0),
    }


def test_perfetto_gets_every_span_and_an_arrow_for_every_need(found: trace.IterationTrace) -> None:
    events = chrome(found)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    drawn = [(names[event["pid"]], event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"]
    expected = [(one.process, one.name, (one.start - START) * 1e6, (one.end - one.start) * 1e6) for one in SPANS]
    assert sorted(drawn) == sorted(expected)
    arrows: dict[int, list[str]] = {}
    for event in events:
        if event["ph"] in "sf":
            arrows.setdefault(event["id"], []).append(names[event["pid"]])
    # Two parts were scored, and the learner needed the scores of both.
    assert sorted(arrows.values()) == [["ocr", "l"], ["ocr", "l"], ["w0", "ocr"], ["w1", "ocr"]]


times = st.integers(0, 30).flatmap(lambda start: st.tuples(st.just(start), st.integers(start + 1, 31)))


@given(st.lists(times, max_size=25))
def test_on_a_line_spans_are_apart_or_one_within_the_other(spans: list[tuple[int, int]]) -> None:
    given = [made("c", str(i), start, end) for i, (start, end) in enumerate(spans)]
    lines = lanes(given)
    assert sorted(one.name for line in lines for one in line) == sorted(one.name for one in given)
    for line in lines:
        for one in line:
            for other in line:
                apart = one.end <= other.start or other.end <= one.start
                within = (one.start <= other.start and other.end <= one.end) or (
                    other.start <= one.start and one.end <= other.end
                )
                assert apart or within


def test_a_process_writes_its_spans_and_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    start_tracing(tmp_path / "trace", "rollout", "rollout_workers")
    with span("iteration", iteration=1):
        with span("forward", rows=2):
            pass
        with pytest.raises(ZeroDivisionError), span("fails"):
            _ = 1 / 0
    stop_tracing()
    with span("unseen"):
        pass
    (file,) = (tmp_path / "trace").iterdir()
    with file.open("a") as torn:
        torn.write('{"component": "rol')
    (tmp_path / "recipe.yaml").touch()
    found = read(tmp_path, 1)
    assert [one.name for one in found.spans] == ["iteration", "forward", "fails"]
    assert [one.name for one in innermost(found.spans)] == ["forward", "fails"]
    outer, forward, fails = found.spans
    assert outer.start <= forward.start <= forward.end <= fails.start <= fails.end <= outer.end
    assert (forward.attributes, forward.pool) == ({"rows": 2}, "rollout_workers")


def test_a_folder_that_can_not_be_written_to_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start_tracing(tmp_path / "nowhere" / "trace", "rollout", "rollout_workers")
    with span("forward"):
        pass
    assert "is not traced" in caplog.text
    assert not (tmp_path / "nowhere").exists()


def test_the_last_of_several_attempts_at_an_iteration_counts(tmp_path: Path) -> None:
    spans = [
        made("c", "iteration", start, end, iteration=i) for start, end, i in ((0, 10, 1), (10, 12, 2), (20, 25, 1))
    ]
    write(tmp_path / "trace", spans)
    assert read(tmp_path, 1).seconds == 5
    assert read(tmp_path, None).number == 1


def test_an_iteration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"logging\.trace"):
        read(tmp_path, None)
    write(tmp_path / "trace", SPANS)
    with pytest.raises(InputError, match="--iteration is 7.* has 3 to 3"):
        read(tmp_path, 7)


def covers(found: trace.IterationTrace) -> bool:
    """Whether the critical path's pieces follow each other from the iteration's start to its end."""
    steps = critical_path(found)
    meet = all(abs(one.end - other.start) < 1e-9 for one, other in pairwise(steps))
    return meet and steps[0].start == found.start and steps[-1].end == found.end


def test_the_path_covers_the_iteration(found: trace.IterationTrace) -> None:
    assert covers(found)


def test_a_run_in_one_process_is_traced_unless_it_is_told_not_to_be(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"iterations": 2, "evaluation.samples": 2})
    display = RunDisplay(Console(quiet=True))
    folder = train(settings, display)
    found = read(folder, 2)
    assert covers(found)
    line = RunFolder.open(folder).lines("metrics")[1]
    assert sum(one.attributes["rows"] for one in found.spans if one.name == "forward") == line["forward_passes"]
    assert {one.component for one in found.spans} == {"in_process"}
    assert 0 < found.seconds < line["seconds"] + 0.1
    run = RunFolder.open(folder)
    first = run.evaluation(run.lines("evaluations")[0])
    assert list(first.prompts) == [prompt for prompt in ("000", "003", "006") for _ in range(2)]
    pairs = (first.media / 255).reshape(3, 2, *first.media.shape[1:])
    expected = np.sqrt(pairs.var(axis=1, ddof=1).reshape(3, -1).mean(axis=1)).mean()
    assert first.means()["diversity"] == pytest.approx(expected, rel=1e-9)
    silent = train(settings.model_copy(update={"name": "silent", "logging": LoggingSettings(trace=False)}), display)
    assert not (silent / "trace").exists()
