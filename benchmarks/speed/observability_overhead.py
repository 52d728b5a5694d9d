"""What watching a run costs: spans and scraped metrics against neither.

Two runs of the demo's recipe on one Ray take turns, iteration by iteration, over the same prompts with the same seed:
both do the same work. One writes spans and has every process scraped each second; the other does neither. What a single
span costs is measured too.

    python -m branchgrpo.benchmarks.speed.observability_overhead --out build/bench
"""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import requests
import typer
from rich.console import Console

from ...cluster.observability.trace import read
from ...cluster.on_ray.driver import RayLoop
from ...proto.prompts import read_prompts
from ...proto.settings import RunSettings
from ...proto.tracing import span, start_tracing, stop_tracing
from ..support.report import report_path, write_report
from .ray_overhead import demo

CPUS = 0.4
"""That each process sets aside, so that both runs fit on two cores."""
SPANS = 20_000


def settings(folder: Path, name: str, trace: bool) -> RunSettings:
    pools = {pool: {"cpus": CPUS, "threads": 1} for pool in ("rollout_workers", "learner")}
    logging = {"tensorboard": False, "samples_every": 0, "trace": trace}
    changes: dict[str, Any] = {"pools": {**pools, "rewards": {"ocr": {"cpus": CPUS, "threads": 1}}}, "logging": logging}
    return demo({"name": name, "runs": folder, **changes})


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


def main(
    out: Annotated[Path, typer.Option(help="Folder for watching.json.")] = Path("build/bench"),
    rounds: Annotated[int, typer.Option(help="Measured pairs of iterations, after one to warm up.")] = 16,
) -> None:
    """Measure what spans and scraping add to an iteration.

    Example: python -m branchgrpo.benchmarks.speed.observability_overhead --out build/bench
    """
    path = report_path(out, "watching")
    console = Console()
    with tempfile.TemporaryDirectory() as name, ExitStack() as runs:
        folder = Path(name)
        loops = {}
        for run, trace in (("off", False), ("on", True)):
            (folder / run).mkdir()
            given = settings(folder, run, trace)
            prompts = read_prompts(given.prompts.train, "prompts.train")
            loops[run] = runs.enter_context(closing(RayLoop(given, folder / run, prompts, None)))
        discovery = json.loads((folder / "on" / "ray.json").read_text())["http"] + "/sd"
        seconds: dict[str, list[float]] = {run: [] for run in loops}
        for iteration in range(1, rounds + 2):
            for run in ("off", "on") if iteration % 2 else ("on", "off"):
                with scraped(discovery) if run == "on" else ExitStack():
                    start = time.perf_counter()
                    loops[run].iterate(iteration)
                    seconds[run].append(time.perf_counter() - start)
        time.sleep(1)
        spans = len(read(folder / "on", rounds + 1).spans)
        cost = {"on": seconds_per_span(folder / "spans"), "off": seconds_per_span(None)}
    pairs = list(zip(seconds["on"][1:], seconds["off"][1:], strict=True))
    median = statistics.median(off for _, off in pairs)
    report = {
        "seconds per iteration": seconds,
        "on / off": statistics.median(on / off for on, off in pairs),
        "microseconds per span": {state: 1e6 * spent for state, spent in cost.items()},
        "spans per iteration": spans,
        "share of an iteration": {state: spans * spent / median for state, spent in cost.items()},
    }
    write_report(path, report)
    console.print(f"spans and scraping every second: {report['on / off']:.3f} times the seconds (at most 1.02)")
    for state, share in report["share of an iteration"].items():  # type: ignore[attr-defined]
        console.print(
            f"{spans} spans an iteration, {state}: {1e6 * cost[state]:.1f} us each, {share:.3%} of its seconds"
        )
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
