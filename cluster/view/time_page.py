"""The section of where an iteration's seconds went: a lane for each process, and the critical path."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from ...proto.errors import InputError
from ..run.iteration_trace import IterationTrace, Span, Step, critical_path, idle, iteration_marks, lanes, read
from .pages import Asked, Links, asked_number, render, seconds
from .runs import Run

MINIMUM_SHARE = 2e-4
"""Part of the iteration below which a span can't be seen."""
COLOURS = 8


@dataclass(frozen=True)
class Bar:
    """A span or step, in percent of the iteration's width."""

    name: str
    left: float
    width: float
    colour: int
    critical: bool
    text: str


@dataclass(frozen=True)
class Lane:
    """The bars of a process, in lines in each of which any two are apart or one within the other."""

    process: str
    cpu: float | None
    """CPU seconds at work; None if they weren't measured."""
    lines: list[list[Bar]]


def build(run: Run, asked: Asked, links: Links) -> Markup:
    """The lanes of an iteration, its critical path and idle time."""
    folder = run.file("trace")
    marks = iteration_marks(folder) if folder else {}
    iterations = list(marks)
    iteration = asked_number(asked, "iteration", iterations)
    if iteration is None:
        return render("time.html", trace=None, iterations=[])
    try:
        trace = read(run.folder, iteration, marks)
    except (InputError, LookupError, TypeError) as error:
        run.problems["trace"] = f"can't be read: {error}"
        return render("time.html", trace=None, iterations=[])
    path = critical_path(trace)
    totals: dict[str, list[float]] = defaultdict(list)
    for step in path:
        totals[step.name].append(step.end - step.start)
    names = list(dict.fromkeys(span.name for span in trace.spans))
    colours = {name: index % COLOURS for index, name in enumerate(names)}
    steps = [(step, colours.get(step.name.partition(": ")[2])) for step in path]
    uses = idle(trace)
    return render(
        "time.html",
        trace=trace,
        iterations=iterations,
        path=[_bar(trace, step.name, step.start, step.end, colour, True) for step, colour in steps],
        lanes=_lanes(trace, path, colours, {process: cpu for use in uses for process, cpu in use.cpu.items()}),
        colours=colours,
        ticks=[(25 * i, seconds(trace.seconds * i / 4)) for i in range(5)],
        totals=sorted(((name, len(parts), sum(parts)) for name, parts in totals.items()), key=lambda row: -row[2]),
        idle=uses,
        action=links.section("time"),
        newest="iteration" not in asked,
    )


def _lanes(trace: IterationTrace, path: list[Step], colours: dict[str, int], cpu: Mapping[str, float]) -> list[Lane]:
    processes: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in trace.spans:
        if span.name != "iteration":
            processes[span.component, span.process].append(span)
    steps: dict[str, list[Step]] = defaultdict(list)
    for step in path:
        steps[step.name].append(step)

    def critical(span: Span) -> bool:
        own = steps.get(f"{span.pool}: {span.name}", ())
        return any(step.start < span.end and span.start < step.end for step in own)

    return [
        Lane(
            process,
            cpu.get(process),
            [
                [_bar(trace, span.name, span.start, span.end, colours[span.name], critical(span)) for span in line]
                for line in lanes([span for span in spans if span.end - span.start > MINIMUM_SHARE * trace.seconds])
            ],
        )
        for (_, process), spans in sorted(processes.items())
    ]


def _bar(trace: IterationTrace, name: str, start: float, end: float, colour: int | None, critical: bool) -> Bar:
    left, right = (100 * (min(max(at, trace.start), trace.end) - trace.start) / trace.seconds for at in (start, end))
    text = f"{name}: {seconds(end - start)}, from {seconds(start - trace.start)} on"
    return Bar(name, round(left, 3), round(right - left, 3), -1 if colour is None else colour, critical, text)
