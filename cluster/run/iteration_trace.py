"""Where an iteration's seconds went: the spans of all processes, and who waited for whom.

Dependencies between spans of different processes follow from their attributes: a reward model scores the parts that
workers have sent, the learner takes the trees whose parts are scored, workers load the weights that were published.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ...proto.errors import InputError
from .phases import length

AHEAD = "fetch ahead"
"""Name of the spans of a learner's second thread, which fetches the states of its next window."""
WAITS = {"hand over"}
"""Spans in which a process may do nothing but wait for room."""
DIRECTOR = "controller"
"""Component that computes nothing: its spans tell what it waits for."""
TIMES = re.compile(rb'"start": ([\d.]+), "end": ([\d.]+)')
"""Start and end of a span, within its line."""
SLACK_SECONDS = 1e-4
"""Spans of one thread that follow each other may overlap by so much, for the clock is read more than once."""


@dataclass(frozen=True)
class Span:
    """A piece of work of one process, with its start and end in Unix seconds."""

    process: str
    component: str
    pool: str
    name: str
    start: float
    end: float
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    cpu: float | None = None
    """CPU seconds of its process meanwhile; None for a process that does several things at once."""

    @property
    def thread(self) -> tuple[str, bool]:
        """Its process, and whether this is the second thread of it."""
        return self.process, self.name == AHEAD

    def gives(self) -> list[str]:
        """Keys of the results that other spans may need."""
        match self.name:
            case "hand over":
                return [f"part {self.attributes['part']}"]
            case "score":
                return [f"scores {_tree(request)}" for request in self.attributes["requests"]]
            case "publish":
                return [f"weights {self.attributes['version']}"]
            case "fetch ahead":
                return self._of_its_trees("states")
        return []

    def needs(self) -> list[str]:
        """Keys of the results that this span needed to start."""
        match self.name:
            case "score":
                return [f"part {request.partition('/')[2]}" for request in self.attributes["requests"]]
            case "fetch ahead":
                return self._of_its_trees("scores")
            case "learn":
                return self._of_its_trees("scores") + self._of_its_trees("states")
            case "load weights":
                return [f"weights {self.attributes['version']}"]
        return []

    def _of_its_trees(self, what: str) -> list[str]:
        return [f"{what} {self.attributes['iteration']}/{tree}" for tree in self.attributes["trees"]]


SPAN = TypeAdapter(Span)


def _tree(request: str) -> str:
    """`iteration/tree` of a request `run/iteration/tree/leaf`."""
    return "/".join(request.split("/")[1:3])


@dataclass(frozen=True)
class IterationTrace:
    """The spans that overlap an iteration."""

    number: int
    start: float
    end: float
    spans: Sequence[Span]
    processes: Mapping[str, int] = field(default_factory=dict)
    """Pool -> its number of processes, including idle ones."""
    first_score: float | None = None
    """Fraction of the iteration's forward passes that were done when its first leaf was scored."""

    @property
    def seconds(self) -> float:
        """Wall seconds of the iteration."""
        return self.end - self.start


@dataclass(frozen=True)
class Step:
    """A piece of the critical path: a span that it leads through, or the time between two."""

    name: str
    start: float
    end: float


def read(run: Path, iteration: int | None, marks: Mapping[int, Span] | None = None) -> IterationTrace:
    """The trace of an iteration of the run in folder `run`; of the newest, without a number.

    `marks` are those of the run's trace, if they are known. Where an iteration was done again after a resume, the last
    time counts. Raises InputError if it isn't traced.
    """
    marks = iteration_marks(run / "trace") if marks is None else marks
    if not marks:
        raise InputError(f"{run} has no trace of a finished iteration; runs write one with logging.trace=true")
    number = max(marks, key=lambda number: marks[number].end) if iteration is None else iteration
    if number not in marks:
        raise InputError(f"--iteration is {number}; the trace of {run} has {min(marks)} to {max(marks)}")
    mark = marks[number]
    begin = min(mark.start, marks.get(number - 1, mark).start)  # when the first tree may have been sampled ahead
    spans = [span for span in _between(run / "trace", begin, mark.end) if span.end > begin and span.start < mark.end]
    inside = [span for span in spans if span.end > mark.start]
    processes = mark.attributes.get("processes", {})
    first = _first_score([span for span in spans if begin <= span.start], number)
    inside.sort(key=attrgetter("start", "end"))
    return IterationTrace(number, mark.start, mark.end, inside, processes, first)


def iteration_marks(folder: Path) -> dict[int, Span]:
    """Iteration -> its span among those in a folder, ascending; of one that was done again, the last."""
    lines = (line for line in _lines(folder) if b'"name": "iteration"' in line)
    spans = sorted(_named(_parsed(lines), "iteration"), key=attrgetter("end"))
    last = {number: span for span in spans if isinstance(number := span.attributes.get("iteration"), int)}
    return dict(sorted(last.items()))


def _between(folder: Path, begin: float, end: float) -> Iterator[Span]:
    """The spans that overlap a time, and perhaps others. Times are looked at before a line is parsed, for most lines of
    a long run are of other iterations."""

    def may_overlap(line: bytes) -> bool:
        times = TIMES.search(line)
        return times is None or (float(times[2]) > begin and float(times[1]) < end)

    return _parsed(filter(may_overlap, _lines(folder)))


def _lines(folder: Path) -> Iterator[bytes]:
    """The lines of all files, one after the other: all of a long run would take much memory."""
    for path in sorted(folder.glob("*.jsonl*")):
        with path.open("rb") as file:
            yield from file


def _parsed(lines: Iterable[bytes]) -> Iterator[Span]:
    for line in lines:
        with suppress(ValueError):  # the last line of a killed process, a disk that was full
            yield SPAN.validate_json(line)


def _first_score(spans: Sequence[Span], number: int) -> float | None:
    """`IterationTrace.first_score` of iteration `number`; None if nothing of it was scored."""
    passes = [span for span in _named(spans, "forward") if span.attributes.get("iteration") == number]
    scored = [one.end for one in _named(spans, "scoring") if one.attributes.get("part", "").startswith(f"{number}/")]
    rows = sum(span.attributes["rows"] for span in passes if span.end <= min(scored, default=0))
    return rows / sum(span.attributes["rows"] for span in passes) if rows else None


def _named(spans: Iterable[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def critical_path(trace: IterationTrace) -> list[Step]:
    """The critical path: the chain of work that determined the iteration's length, in order and without gaps.

    Walked backwards from the end: what a span waited for is whatever ended last before it began, of what it needs from
    others and of its own thread's work.
    """
    work = [span for span in trace.spans if span.component != DIRECTOR and span.name != "iteration"]
    givers: dict[str, list[Span]] = defaultdict(list)
    for span in work:
        for key in span.gives():
            givers[key].append(span)
    owners: dict[tuple[str, bool], list[Span]] = defaultdict(list)
    parts = innermost(work)
    for span in parts:
        owners[span.thread].append(span)

    def before(span: Span) -> Span | None:
        """The span that ended last among those that `span` had to wait for."""
        own = [other for other in owners[span.thread] if other.end <= span.start + SLACK_SECONDS and other != span]
        outer = [other for other in work if _inside(span, other)]
        beginning = [one for one in (span, *outer) if _first(one, span, owners[span.thread])]
        needed = [giver for one in beginning for key in one.needs() for giver in givers[key]]
        candidates = [one for one in own + needed if one.start < span.start]
        return max(candidates, key=attrgetter("end"), default=None)

    # Workers may be sampling ahead: the iteration ends with its weights. In one process it ends with whatever is last.
    published = [one for one in parts if one.name == "publish" and one.attributes["version"] == trace.number]
    ends = published or [one for one in parts if one.end <= trace.end + SLACK_SECONDS]
    at = max(ends, key=attrgetter("end"), default=None)
    steps: list[Step] = []
    after: Span | None
    reached, after = trace.end, None
    while at and at.end > trace.start:
        begin, end = max(at.start, trace.start), min(at.end, reached)
        if reached > end:
            same = after is not None and after.process == at.process
            between = f"{at.pool}: other work" if same else f"{_label(at)} → {_label(after)}"
            steps.append(Step(between, end, reached))
        if end > begin:
            steps.append(Step(_label(at), begin, end))
        reached, after = min(begin, end), at
        at = before(at)
    if reached > trace.start:
        steps.append(Step(f"start → {_label(after)}", trace.start, reached))
    return steps[::-1]


def _label(span: Span | None) -> str:
    return f"{span.pool}: {span.name}" if span else "end"


def _inside(inner: Span, outer: Span) -> bool:
    """Whether `inner` is part of `outer`, a longer span of its thread."""
    return (
        inner.thread == outer.thread
        and inner != outer
        and outer.start <= inner.start
        and inner.end <= outer.end + SLACK_SECONDS
        and outer.end - outer.start > inner.end - inner.start
    )


def _first(outer: Span, inner: Span, own: Sequence[Span]) -> bool:
    """Whether nothing was done in `outer` before `inner`."""
    return not any(outer.start <= other.start < inner.start for other in own)


def innermost(spans: Sequence[Span]) -> list[Span]:
    """Spans that no other one of their thread is part of."""
    found = []
    threads: dict[tuple[str, bool], list[Span]] = defaultdict(list)
    for span in spans:
        threads[span.thread].append(span)
    for own in threads.values():
        ordered = sorted(own, key=lambda span: (span.start, -span.end))
        # Spans of a thread nest: one with parts is followed at once by its first part.
        found += [span for span, following in pairwise(ordered) if not _inside(following, span)] + ordered[-1:]
    return found


@dataclass(frozen=True)
class PoolUse:
    """How busy the processes of a pool were."""

    pool: str
    processes: int
    idle: float
    """Seconds, added up over them."""
    waited: float
    """Seconds of these in which they waited to hand parts over."""
    cpu: Mapping[str, float]
    """Process -> its CPU seconds at work."""


def idle(trace: IterationTrace) -> list[PoolUse]:
    """The pools of an iteration, those with the least idle time first."""
    pools: dict[str, dict[str, list[Span]]] = defaultdict(lambda: defaultdict(list))
    for pool in trace.processes:
        pools[pool] = defaultdict(list)
    for span in trace.spans:
        if span.component != DIRECTOR and span.name != "iteration":
            pools[span.pool][span.process].append(span)
    uses = []
    for pool, processes in pools.items():
        idle = waited = 0.0
        cpu = {}
        for process, spans in processes.items():
            cpu[process] = sum(_cpu_within(span, trace) for span in _outermost(spans))
            clipped = [(span, max(span.start, trace.start), min(span.end, trace.end)) for span in spans]
            handing = length([[start, end] for span, start, end in clipped if span.name in WAITS], trace.end)
            idle += trace.seconds - length([[start, end] for _, start, end in clipped], trace.end) + handing
            waited += handing
        unseen = max(trace.processes.get(pool, 0) - len(processes), 0)
        uses.append(PoolUse(pool, len(processes) + unseen, idle + unseen * trace.seconds, waited, cpu))
    return sorted(uses, key=lambda use: use.idle / use.processes)


def _outermost(spans: Sequence[Span]) -> list[Span]:
    """Spans of one process during which no other one of it went on from beginning to end: CPU seconds are those of
    all its threads."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if not found or span.end > found[-1].end + SLACK_SECONDS:
            found.append(span)
    return found


def _cpu_within(span: Span, trace: IterationTrace) -> float:
    """CPU seconds of the part of a span that lies in the iteration."""
    inside = min(span.end, trace.end) - max(span.start, trace.start)
    return (span.cpu or 0.0) * inside / (span.end - span.start) if span.end > span.start else 0.0


def lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans of one process, arranged in lines. Within a line any two are disjoint, or one holds the other."""
    lines: list[tuple[list[Span], list[float]]] = []  # each with the ends of the spans that a next one is in
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        for _, ends in lines:
            while ends and ends[-1] <= span.start:
                ends.pop()
        fits = (line for line in lines if not line[1] or span.end <= line[1][-1])
        line = next(fits, None)
        if line is None:
            lines.append(line := ([], []))
        line[0].append(span)
        line[1].append(span.end)
    return [line for line, _ in lines]
