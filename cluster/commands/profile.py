"""`branchgrpo profile`: what torch does within the spans of a running run, as one file for Perfetto."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tenacity

from ...proto.atomic_files import write_text
from ...proto.errors import InputError, ProcessLost, RunFailed
from ...proto.profiling import PROCESS, Component, ProfileOrder, ProfileRequest
from ...proto.recipe import load_recipe
from ..on_ray.run_address import FILE, RunAddress
from ..run.iteration_trace import IterationTrace, read
from ..run.profile_file import profile_in_one_process
from ..run.profiling import ENDED, folder_of_spans
from ..run.status import status_of
from .trace import chrome

Profile = dict[str, Any]
"""Chrome's trace of a process, as torch writes it."""
FIRST_THREAD = 1000
"""Number of the first line of operations in the file, below the lines of spans."""
FLOWS_OF_A_PROCESS = 10**10
DEFAULT = (Component.ROLLOUT, Component.LEARNER)
"""Components that are profiled on Ray unless others are named."""
SPANS_SECONDS = 20
"""Maximum seconds until the spans of the last iteration lie on the disk."""


def running(run: str, address: str | None) -> RunAddress | Path:
    """The address of a run, a name or a run folder; the folder of one in one process.

    Raises InputError for a run that can't be profiled.
    """
    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        return RunAddress.find(run, address)
    settings = load_recipe(folder / "recipe.yaml")
    if settings.execution == "ray" and (folder / FILE).is_file():
        return RunAddress.find(run, address)
    if not status_of(folder).live:
        raise InputError(f"the run in {folder} isn't running; profile looks into a run while it runs")
    if settings.execution == "ray":
        raise InputError(f"the run in {folder} is about to start; ask again when it has begun")
    folder_of_spans(settings)
    return folder


def profile(
    where: RunAddress | Path, iterations: int, components: Sequence[Component] | None, everyone: bool, seconds: float
) -> ProfileOrder:
    """Have the next iterations of a run profiled; returns what was, when they are over.

    Without `components`, those of `DEFAULT`; all that one process does. Raises InputError for a run that isn't there,
    has no iteration left, or is being profiled, and RunFailed if it ends meanwhile.
    """
    if isinstance(where, Path):
        request = ProfileRequest(iterations, tuple(components or Component), everyone, seconds)
        return profile_in_one_process(where, request)
    request = ProfileRequest(iterations, tuple(components or DEFAULT), everyone, seconds)
    address = where.found()
    from ..on_ray.calls import call_controller  # Ray reads its way of authentication when it is imported

    try:
        order: ProfileOrder = call_controller(address, lambda controller: controller.profile.remote(request))
    except ProcessLost as error:
        raise RunFailed(ENDED) from error
    return order


def write(order: ProfileOrder, out: Path | None) -> Path:
    """Write spans and operations of the profiled iterations into one file, and delete the processes' own.

    Raises InputError if they aren't on this machine's disk.
    """
    try:
        merged = _merged(order)
    finally:
        shutil.rmtree(order.folder, ignore_errors=True)
    path = out or order.folder.with_name(f"profile-{order.first:06d}-{order.last:06d}.json")
    write_text(path, json.dumps(merged) + "\n")
    return path


def _merged(order: ProfileOrder) -> dict[str, Any]:
    profiles = [json.loads(path.read_text()) for path in sorted(order.folder.glob("*.json"))]
    if not profiles:
        raise InputError(
            f"no process has left a profile in {order.folder}: the processes don't share this folder with this "
            "machine, or had no work in these iterations"
        )
    return chrome_with_operations(spans(order, min(map(began, profiles))), profiles)


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
