"""The bytes that a device's allocator holds at most during a call."""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: torch.device) -> float:
    """The bytes that are allocated at the peak of a call, beside those that were there before.

    On a CPU, what another thread frees counts on as allocated, for the profiler sees this thread alone.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    # "Total Allocated" goes on from the profile before, so the bytes are added up here.
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: float(event["ts"]))
    return max(accumulate((event["args"]["Bytes"] for event in changes), initial=0))
