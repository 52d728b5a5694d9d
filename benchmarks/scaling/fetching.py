"""What a learner rank waits for states that lie on another node: fetched when it needs them, and fetched ahead.

Two of Ray's nodes on this machine: rollout workers on one, the learner on the other. Its forward and backward passes
sleep, so that what it waits for states is no competition for cores. Both runs are on the same cluster, in turns.

    python -m branchgrpo.benchmarks.scaling.fetching --out build/bench
"""

import json
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.request import urlopen

import ray
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from ...cluster.on_ray.connect import connected
from ...cluster.on_ray.driver import RayLoop
from ...cluster.on_ray.learner_process import LearnerProcess
from ...proto.settings import RunSettings
from ..support.demo import PROMPTS, SHARE, stand_in_run
from ..support.local_cluster import several_nodes, wait_until
from ..support.report import OUT, Out, Rounds, report_path, write_report
from ..support.stand_ins import RowPolicy
from ..support.timed_loop import timed

HERE = "branchgrpo.benchmarks.scaling.fetching"
STORE = 2**30


class FetchedAhead(RowPolicy):
    """Rollouts take no time, so that windows are ready when the learner could fetch them."""

    forward_seconds = row_seconds = 0.0
    learner_row_seconds = 0.01


class FetchedWhenNeeded(FetchedAhead):
    """Rollouts take no time, and the learner's process fetches nothing ahead."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        LearnerProcess.fetch_ahead = lambda self, window: None  # type: ignore[method-assign]


def recipe(policy: type[FetchedAhead], pixels: int) -> RunSettings:
    """Eight trees of 16 leaves in windows of two, whose states are those of pictures of `pixels` squared."""
    return stand_in_run(
        "RowPolicy",
        {"counting": "counting_scorer"},
        2,
        {
            "name": policy.__name__.lower(),
            "policy.adapter": f"{HERE}:{policy.__name__}",
            "policy.height": pixels,
            "policy.width": pixels,
            "prompts.per_iteration": 8,
            "schedule": {"steps": 6, "splits": {0: 2, 1: 2, 2: 2, 3: 2}, "eta": 0.7},
            "rollout": {"trees_per_task": 1, "max_batch_rows": 16},
            "learner": {"window_trees": 2, "rows_per_micro_batch": 16, "zero_stage": 0},
            "pools.rollout_workers": {**SHARE, "count": 2, "resources": {"work": 0.1}},
            "pools.learner": {**SHARE, "resources": {"learn": 1}},
        },
    )


def counters(folder: Path) -> dict[str, float]:
    """Seconds that the learner has worked, and of these waited for states, by its own counters."""
    discovery = json.loads((folder / "ray.json").read_text())["http"] + "/sd"
    found: dict[str, float] = {}
    for group in json.load(urlopen(discovery)):
        for target in group["targets"] if group["labels"].get("pool") == "learner" else ():
            for family in text_string_to_metric_families(urlopen(f"http://{target}/metrics").read().decode()):
                for name in ("fetching", "learning"):
                    if family.name == f"branchgrpo_{name}_seconds":
                        found[name] = next(one.value for one in family.samples if one.name.endswith("_total"))
    return found


def main(
    out: Out = OUT,
    rounds: Rounds = 5,
    pixels: Annotated[int, typer.Option(help="Height and width of a picture, which decide the size of states.")] = 512,
) -> None:
    """Measure what a learner waits for states of another node.

    Example: python -m branchgrpo.benchmarks.scaling.fetching --out build/bench
    """
    path, console = report_path(out, "fetching"), Console()
    shares: dict[str, dict[str, float]] = {}
    with several_nodes(1, STORE) as (address, _), TemporaryDirectory() as name, ExitStack() as runs:
        with connected(address):
            wait_until(lambda: ray.cluster_resources().get("work"), 180, lambda: "a node didn't start")
        loops = {}
        for policy in (FetchedWhenNeeded, FetchedAhead):
            folder = Path(name) / policy.__name__
            folder.mkdir()
            loops[folder] = runs.enter_context(closing(RayLoop(recipe(policy, pixels), folder, PROMPTS, address)))
        before = {}
        for iteration in range(1, rounds + 2):
            for folder, loop in loops.items():
                timed(loop, iteration)
                if iteration == 1:
                    before[folder] = counters(folder)
        for folder in loops:
            spent = {name: value - before[folder][name] for name, value in counters(folder).items()}
            share = spent["fetching"] / spent["learning"]
            shares[folder.name] = {**spent, "share": share}
            console.print(f"{folder.name}: {spent['fetching']:.3f} of {spent['learning']:.2f} s, {share:.2%}")
    ratio = shares["FetchedAhead"]["share"] / shares["FetchedWhenNeeded"]["share"]
    console.print(f"waiting for states, ahead over when needed: {ratio:.3f}")
    write_report(path, {"pixels": pixels, "rounds": rounds, "waiting": shares, "ahead / when needed": ratio})


if __name__ == "__main__":
    typer.run(main)
