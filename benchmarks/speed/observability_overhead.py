"""What watching a run costs: spans and scraped metrics against neither.

Two runs of the demo's recipe on one Ray take turns, iteration by iteration, over the same prompts with the same seed:
both do the same work. One writes spans and has every process scraped each second; the other does neither. What a single
span costs is measured too.

    python -m branchgrpo.benchmarks.speed.observability_overhead --out build/bench
"""

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from statistics import median

import requests
import typer
from rich.console import Console

from ...cluster.on_ray.driver import RayLoop
from ...cluster.run.iteration_trace import read
from ...proto.settings import RunSettings
from ...proto.tracing import span, start_tracing, stop_tracing
from ..support.demo import PROMPTS, demo
from ..support.report import OUT, Out, Rounds, report_path, write_report
from ..support.timed_loop import timed

PROCESS = {"cpus": 0.4, "threads": 1}
"""What each process reserves, so that both runs fit on two cores."""
SPANS = 20_000


def settings(folder: Path, name: str, trace: bool) -> RunSettings:
    """The demo as the run `name` below a folder, with or without spans."""
    pools = {"rollout_workers": PROCESS, "learner": PROCESS, "rewards": {"ocr": PROCESS}}
    logging = {"tensorboard": False, "samples_every": 0, "trees_every": 0, "trace": trace}
    return demo({"name": name, "runs": str(folder), "pools": pools, "logging": logging})


@contextmanager
def scraped(discovery: str) -> Iterator[None]:
    """Fetch the metrics of everything that the service discovery names, once a second."""
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(1):
            for group in requests.get(discovery, timeout=5).json():
                for target in group["targets"]:
                    requests.get(f"http://{target}/metrics", timeout=5)

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def seconds_per_span(folder: Path | None) -> float:
    """Seconds that a span with attributes takes; it is written if there is a folder."""
    start_tracing(folder, "rollout", "rollout_workers")
    start = time.perf_counter()
    for i in range(SPANS):
        with span("forward", rows=i, depth=3):
            pass
    spent = time.perf_counter() - start
    stop_tracing()
    return spent / SPANS


def main(out: Out = OUT, rounds: Rounds = 16) -> None:
    """Measure what spans and scraping add to an iteration."""
    path = report_path(out, "watching")
    console = Console()
    with tempfile.TemporaryDirectory() as name, ExitStack() as runs:
        folder, loops = Path(name), {}
        for run, trace in (("off", False), ("on", True)):
            (folder / run).mkdir()
            loop = RayLoop(settings(folder, run, trace), folder / run, PROMPTS, None)
            loops[run] = runs.enter_context(closing(loop))
        discovery = json.loads((folder / "on" / "ray.json").read_text())["http"] + "/sd"
        seconds: dict[str, list[float]] = {run: [] for run in loops}
        for iteration in range(1, rounds + 2):
            for run in ("off", "on") if iteration % 2 else ("on", "off"):
                with scraped(discovery) if run == "on" else nullcontext():
                    seconds[run].append(timed(loops[run], iteration)[0])
        time.sleep(1)
        spans = len(read(folder / "on", rounds + 1).spans)
        cost = {"on": seconds_per_span(folder / "spans"), "off": seconds_per_span(None)}
    pairs = list(zip(seconds["on"][1:], seconds["off"][1:], strict=True))
    ratio, typical = median(on / off for on, off in pairs), median(off for _, off in pairs)
    shares = {state: spans * spent / typical for state, spent in cost.items()}
    console.print(f"spans and scraping every second: {ratio:.3f} times the seconds (at most 1.02)")
    for state, share in shares.items():
        each = f"{1e6 * cost[state]:.1f} us each, {share:.3%} of its seconds"
        console.print(f"{spans} spans an iteration, {state}: {each}")
    report = {
        "seconds per iteration": seconds,
        "on / off": ratio,
        "microseconds per span": {state: 1e6 * spent for state, spent in cost.items()},
        "spans per iteration": spans,
        "share of an iteration": shares,
    }
    write_report(path, report)
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
