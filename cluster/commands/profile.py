"""`branchgrpo profile`: what torch does within the spans of a running run, as one file for Perfetto."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tenacity

from ...proto.atomic_files import remove, write_text
from ...proto.errors import InputError, ProcessLost, RunFailed
from ...proto.profiling import PROCESS, Component, ProfileOrder
from ..on_ray.run_address import FILE, RunAddress
from ..run.iteration_trace import IterationTrace, read
from ..run.status import status_of
from .trace import chrome

Profile = dict[str, Any]
"""Chrome's trace of a process, as torch writes it."""
FIRST_THREAD = 1000
"""Number of the first line of operations in the file, below the lines of spans."""
FLOWS_OF_A_PROCESS = 10**10
SPANS_SECONDS = 20
"""Maximum seconds until the spans of the last iteration lie on the disk."""


def running(run: str, address: str | None) -> RunAddress:
    """The address of a run, a name or a run folder. Raises InputError for a run that can't be profiled."""
    folder = Path(run)
    if (folder / "recipe.yaml").is_file() and not (folder / FILE).is_file():
        if status_of(folder).live:
            raise InputError(
                f"the run in {folder} isn't on Ray, or is about to start; profile needs a run with execution=ray that "
                "has begun"
            )
        raise InputError(f"the run in {folder} isn't running; profile looks into a run while it runs")
    return RunAddress.find(run, address)


def profile(
    where: RunAddress, iterations: int, components: Sequence[Component], everyone: bool, seconds: float
) -> ProfileOrder:
    """Have the next iterations of a run profiled; returns what was, when they are over.

    Raises InputError for a run that isn't there, or has no iteration left, and RunFailed if it ends meanwhile.
    """
    address = where.found()
    from ..on_ray.calls import call_controller  # Ray reads its way of authentication when it is imported

    try:
        order: ProfileOrder = call_controller(
            address, lambda controller: controller.profile.remote(iterations, list(components), everyone, seconds)
        )
    except ProcessLost as error:
        raise RunFailed("the run ended, or restarted after a fault, before the iterations were over") from error
    return order


def write(order: ProfileOrder, out: Path | None) -> Path:
    """Write spans and operations of the profiled iterations into one file, and delete the processes' own.

    Raises InputError if they aren't on this machine's disk.
    """
    profiles = [json.loads(path.read_text()) for path in sorted(order.folder.glob("*.json"))]
    if not profiles:
        raise InputError(
            f"no process has left a profile in {order.folder}: the processes don't share this folder with this "
            "machine, or had no work in these iterations"
        )
    path = out or order.folder.with_suffix(".json")
    merged = chrome_with_operations(spans(order, min(map(began, profiles))), profiles)
    write_text(path, json.dumps(merged) + "\n")
    remove(order.folder)
    return path


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(InputError),
    wait=tenacity.wait_fixed(0.2),
    stop=tenacity.stop_after_delay(SPANS_SECONDS),
    reraise=True,
)
def spans(order: ProfileOrder, begin: float) -> IterationTrace:
    """The spans of the profiled iterations as one trace, once the last has been written.

    Where their profiles `begin` earlier, in Unix seconds, as trees were sampled ahead, with the iteration before.
    """
    run = order.folder.parent.parent
    traces = [read(run, number) for number in range(order.first, order.last + 1)]
    if begin < traces[0].start and order.first > 1:
        traces.insert(0, read(run, order.first - 1))
    every = dict.fromkeys(span for trace in traces for span in trace.spans)
    return IterationTrace(order.first, traces[0].start, traces[-1].end, list(every), traces[0].processes)


def began(profile: Profile) -> float:
    """When the first operation of a profile began, in Unix seconds."""
    times = (event["ts"] for event in profile["traceEvents"] if event["ph"] == "X")
    return float(profile["baseTimeNanoseconds"] / 1e9 + min(times, default=0.0) / 1e6)


def chrome_with_operations(trace: IterationTrace, profiles: Sequence[Profile]) -> dict[str, Any]:
    """Spans and torch's operations as Chrome's trace events on one axis: a process each, with its spans above."""
    merged = chrome(trace)
    events = merged["traceEvents"]
    numbers = {
        event["args"]["name"]: event["pid"]
        for event in events
        if event["ph"] == "M" and event["name"] == "process_name"
    }
    threads: dict[tuple[str, Any, Any], int] = {}
    for number, profile in enumerate(profiles, start=1):
        process = profile[PROCESS]
        # Torch's times are microseconds since a moment in Unix nanoseconds; those of spans begin with the trace.
        shift = profile["baseTimeNanoseconds"] / 1000 - trace.start * 1e6
        if process not in numbers:  # all its spans are lost
            numbers[process] = pid = len(numbers) + 1
            events.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": process}})
        for event in profile["traceEvents"]:
            if not isinstance(event["pid"], int) or (event["ph"] == "M" and event["name"] != "thread_name"):
                continue  # torch's own account of itself, and names of processes
            thread = process, event["pid"], event["tid"]
            known = thread in threads
            line = threads.setdefault(thread, FIRST_THREAD + len(threads))
            if event["ph"] == "M" and known:
                continue
            moved = {**event, "pid": numbers[process], "tid": line, "ts": event["ts"] + shift}
            if "id" in event:  # arrows of several profiles aren't mixed up
                moved["id"] = number * FLOWS_OF_A_PROCESS + event["id"]
            events.append(moved)
    return merged
