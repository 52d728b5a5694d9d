"""What `branchgrpo trace` makes of spans: a path whose pieces are known, idle time, lines that nest."""

import json
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.commands.trace import chrome
from branchgrpo.cluster.run.iteration_trace import (
    IterationTrace,
    Span,
    critical_path,
    idle,
    innermost,
    lanes,
    read,
)
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.tracing import span, start_tracing, stop_tracing
from hypothesis import given
from hypothesis import strategies as st
from support import follows

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
    made("w0", "forward", 1, 2, rows=4, iteration=3),
    made("w0", "decode", 2, 3, leaves=4),
    made("w0", "hand over", 3, 4, part="3/0/14"),
    made("w1", "task", 1, 2.5, iteration=3, trees=[1]),
    made("w1", "forward", 1, 2, rows=4, iteration=3),
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
def found(tmp_path: Path) -> IterationTrace:
    write(tmp_path / "trace", SPANS)
    return read(tmp_path, None)


def test_the_critical_path_leads_through_what_spans_wait_for(found: IterationTrace) -> None:
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


def test_the_path_leads_through_what_a_second_thread_fetched_or_past_it(tmp_path: Path) -> None:
    """Whether it began before the learner asked for it, or between the learner's spans."""
    write(tmp_path / "early" / "trace", [*SPANS, made("l", "fetch ahead", 7.2, 7.8, iteration=3, trees=[0, 1])])
    write(tmp_path / "late" / "trace", [*SPANS, made("l", "fetch ahead", 7.55, 7.58, iteration=3, trees=[0, 1])])
    write(tmp_path / "other" / "trace", [*SPANS, made("l", "fetch ahead", 7.55, 9.2, iteration=3, trees=[2, 3])])
    early, late, other = (
        [(step.name, round(step.end - step.start, 6)) for step in critical_path(read(tmp_path / folder, 3))][5:-3]
        for folder in ("early", "late", "other")
    )
    assert early == [
        ("ocr: score", 2.5),
        ("ocr: score → learner: fetch ahead", 0.2),
        ("learner: fetch ahead", 0.4),
        ("learner: fetch", 0.4),
    ]
    assert late == [
        ("ocr: score", 2.5),
        ("ocr: score → learner: fetch ahead", 0.55),
        ("learner: fetch ahead", 0.03),
        ("learner: other work", 0.02),
        ("learner: fetch", 0.4),
    ]
    assert other == [("ocr: score", 2.5), ("ocr: score → learner: fetch", 0.6), ("learner: fetch", 0.4)]


def test_what_threads_do_at_once_costs_its_cpu_seconds_once(tmp_path: Path) -> None:
    learn = Span("l", "learner", "learner", "learn", START + 1, START + 5, {"iteration": 3, "trees": [0, 1]}, cpu=3.0)
    ahead = Span("l", "learner", "learner", "fetch ahead", START + 2, START + 3, {"iteration": 3, "trees": [2]}, cpu=1)
    trace = IterationTrace(3, START, START + 10, [learn, ahead], {"learner": 1})
    (use,) = idle(trace)
    assert use.cpu == {"l": 3.0}


def test_the_path_ends_with_the_weights_though_workers_go_ahead(tmp_path: Path) -> None:
    ahead = [made("w1", "task", 5, 9.8, iteration=4, trees=[0]), made("w1", "forward", 5, 9.8, rows=4)]
    write(tmp_path / "trace", [*SPANS, *ahead])
    names = [step.name for step in critical_path(read(tmp_path, 3))]
    assert names[-3:] == ["learner: forward and backward", "learner: publish", "learner: publish → end"]


def test_lines_that_are_cut_off_or_broken_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "trace", SPANS)
    with next((tmp_path / "trace").iterdir()).open("ab") as file:
        file.write(b'{"process": "c"}\n[1]\n\xff\x00\x00\n{"process": "c", "compo')
    assert len(read(tmp_path, None).spans) == len(SPANS)


def test_the_first_score_is_placed_among_forward_passes(tmp_path: Path) -> None:
    """Also where they were sampled ahead, in the iteration before."""
    others = [
        made("c", "iteration", -9, 0, iteration=2),
        made("w1", "forward", -8, -7, rows=8, iteration=3),
        made("w1", "forward", 7.5, 8, rows=4, iteration=3),
        made("w1", "forward", 8, 9, rows=5, iteration=4),
        made("c", "scoring", 5, 6, part="4/0/14"),
    ]
    write(tmp_path / "trace", [*SPANS, *others])
    assert read(tmp_path, 3).first_score == 16 / 20


def test_idle_time_is_what_no_span_covers(found: IterationTrace) -> None:
    uses = {use.pool: (use.processes, round(use.idle, 6), round(use.waited, 6)) for use in idle(found)}
    assert uses == {
        "rollout_workers": (3, (10 - 3.5 + 1) + (10 - 1.5 + 0.5) + 10, 1.5),
        "hps": (2, 20, 0),
        "ocr": (1, 10 - 4.4, 0),
        "learner": (1, 10 - 2, 0),
    }


def test_perfetto_gets_every_span_and_an_arrow_for_every_need(found: IterationTrace) -> None:
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


def test_a_torn_line_of_spans_costs_only_itself(tmp_path: Path) -> None:
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
    assert 0 <= forward.cpu <= outer.cpu
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


def test_the_path_covers_the_iteration(found: IterationTrace) -> None:
    assert follows(found)
