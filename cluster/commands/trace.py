"""`branchgrpo trace`: an iteration's critical path and idle time as tables, and its spans as a file for Perfetto."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ...proto.atomic_files import write_text
from ..run.iteration_trace import IterationTrace, critical_path, idle, lanes


def show(trace: IterationTrace, console: Console) -> None:
    """The critical path, and idle time by pool, as tables."""
    table = Table(
        "critical path", "times", "seconds", "share", title=f"iteration {trace.number}: {trace.seconds:.2f} s"
    )
    totals: dict[str, list[float]] = defaultdict(list)
    for step in critical_path(trace):
        totals[step.name].append(step.end - step.start)
    for name, seconds in sorted(totals.items(), key=lambda item: -sum(item[1])):
        total = sum(seconds)
        table.add_row(name, str(len(seconds)), f"{total:.3f}", f"{total / trace.seconds:.1%}")
    console.print(table)
    table = Table("pool", "processes", "idle seconds", "idle share", "of it handing over", "CPU seconds")
    for use in idle(trace):
        share = use.idle / (use.processes * trace.seconds)
        cpu, waited = sum(use.cpu.values()), f"{use.waited:.2f} s"
        table.add_row(use.pool, str(use.processes), f"{use.idle:.2f}", f"{share:.0%}", waited, f"{cpu:.2f}")
    console.print(table)
    if trace.first_score:
        console.print(f"first leaf scored after {trace.first_score:.0%} of the forward passes")
    console.print("a → b: on the way from one process to the other, or waiting for its turn there")


# For Perfetto -----------------------------------------------------------------------------------------------------


def write_chrome(trace: IterationTrace, run: Path, out: Path | None) -> Path:
    """Write the trace in Chrome's format; returns where."""
    path = out or run / "trace" / f"iteration-{trace.number:06d}.json"
    write_text(path, json.dumps(chrome(trace)) + "\n")
    return path


def chrome(trace: IterationTrace) -> dict[str, Any]:
    """The trace as Chrome's trace events: a process each, spans that overlap on lines of their own, and arrows from
    what was given to what needed it."""
    events: list[dict[str, Any]] = []
    processes = sorted({(span.component, span.process) for span in trace.spans})
    numbers = {process: number for number, (_, process) in enumerate(processes, start=1)}
    places: dict[int, dict[str, Any]] = {}
    for process, number in numbers.items():
        events.append({"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": process}})
        for line, spans in enumerate(lanes([span for span in trace.spans if span.process == process])):
            for span in spans:
                places[id(span)] = {"pid": number, "tid": line}
                times = {"ts": (span.start - trace.start) * 1e6, "dur": (span.end - span.start) * 1e6}
                event = {"ph": "X", "name": span.name, "cat": span.component, "args": span.attributes}
                events.append({**event, **places[id(span)], **times})
    takers = defaultdict(list)
    for span in trace.spans:
        for key in span.needs():
            takers[key].append(span)
    pairs = [(one, other) for one in trace.spans for key in one.gives() for other in takers[key]]
    for arrow, (one, other) in enumerate(pairs, start=1):
        about = {"cat": "flow", "name": f"{one.name} → {other.name}", "id": arrow}
        # An arrow begins and ends at a time within its spans.
        events.append({"ph": "s", "ts": (one.end - trace.start) * 1e6 - 0.1, **about, **places[id(one)]})
        events.append({"ph": "f", "bp": "e", "ts": (other.start - trace.start) * 1e6, **about, **places[id(other)]})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
