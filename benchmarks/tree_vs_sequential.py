"""What branching and batching save: a tree's rollout and update against sequential sampling, and against single rows.

Same policy, prompts, number of leaves, steps and batch sizes; no edge is skipped, so every trained row is paid for.
Variants take turns within one run, and what is reported are medians over rounds of ratios within a round: they hold on
any machine, and neighbours that come and go disturb them little.

    python -m branchgrpo.benchmarks.tree_vs_sequential --out build/bench
"""

import gc
import json
import statistics
import time
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..learner.learner import Learner
from ..proto.files import write_text
from ..proto.recipe import load_recipe
from ..proto.schedule import Schedule
from ..proto.settings import RunSettings, ScheduleSettings
from ..proto.tree import Task, Tree
from ..rollout_workers.policies.base import Policy
from ..rollout_workers.policies.load import load_policy
from ..rollout_workers.worker import RolloutWorker

TREES = 8


@dataclass
class Variant:
    """One way to sample and train on trees, and the seconds it took."""

    name: str
    settings: RunSettings
    trees: int
    sampling: list[float] = field(default_factory=list)
    """Without decoding, seconds per tree."""
    decoding: list[float] = field(default_factory=list)
    learning: list[float] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        return self.settings.schedule.build()

    def median(self, phase: str) -> float:
        return statistics.median(self.seconds(phase))

    def forget(self) -> None:
        """Drop what was measured to warm up."""
        for measured in (self.sampling, self.decoding, self.learning):
            measured.clear()

    def seconds(self, *phases: str) -> list[float]:
        """Seconds per tree of each round, summed over `phases`."""
        return [sum(parts) for parts in zip(*(getattr(self, phase) for phase in phases), strict=True)]


def variants() -> list[Variant]:
    """The tree, sequential sampling of as many leaves, and the tree with one row per pass."""
    demo = load_recipe(Path(str(files("branchgrpo") / "recipes" / "glyphs.yaml")))
    learner = demo.learner.model_copy(
        update={"skip_zero_advantage": False, "updates_per_iteration": 1, "window_trees": TREES}
    )
    tree = demo.model_copy(update={"learner": learner})
    sequential = tree.model_copy(
        update={
            "schedule": ScheduleSettings(
                method="dance_grpo",
                steps=tree.schedule.steps,
                group=tree.schedule.build().leaves,
                kernel=tree.schedule.kernel,
                eta=tree.schedule.eta,
            ),
            "advantage": tree.advantage.model_copy(update={"normaliser": "group"}),
        }
    )
    single = tree.model_copy(
        update={
            "rollout": tree.rollout.model_copy(update={"batch_limit": 1, "decode_batch": 1}),
            "learner": learner.model_copy(update={"rows_per_micro_batch": 1}),
        }
    )
    return [
        Variant("tree", _with_trees(tree, TREES), TREES),
        Variant("sequential", _with_trees(sequential, TREES), TREES),
        Variant("tree, one row per pass", _with_trees(single, 1), 1),
    ]


def _with_trees(settings: RunSettings, trees: int) -> RunSettings:
    return settings.model_copy(update={"prompts": settings.prompts.model_copy(update={"per_iteration": trees})})


class Decoder:
    """Counts the time that a policy spends in `decode`."""

    def __init__(self, policy: Policy) -> None:
        self.seconds, self._decode = 0.0, policy.decode
        policy.decode = self  # type: ignore[method-assign]

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        pictures = self._decode(latents)
        self.seconds += time.perf_counter() - start
        return pictures


def measure(variant: Variant, policy: Policy, learner: Learner, decoder: Decoder, round_number: int) -> None:
    """One rollout and one update, timed."""
    schedule = variant.schedule
    worker = RolloutWorker(policy, variant.settings.rollout)
    prompts = tuple(f"{number:03d}" for number in range(variant.trees))
    worker.encode(prompts)
    trees = [Tree(i, prompt, schedule) for i, prompt in enumerate(prompts)]
    gc.collect()
    decoder.seconds, start = 0.0, time.perf_counter()
    for part in worker.sample(Task(round_number, tuple(range(variant.trees)), prompts, schedule, seed=0)):
        trees[part.tree].add(part)
    sampled = time.perf_counter() - start
    rng = np.random.default_rng(round_number)
    leaves = np.arange(schedule.first_node[-2], schedule.nodes)
    for tree in trees:
        tree.add_scores(leaves, {name: rng.random(len(leaves)) for name in variant.settings.rewards})
    start = time.perf_counter()
    for tree in trees:
        learner.take(tree)
    stats = learner.update()
    learned = time.perf_counter() - start
    if stats.rows != schedule.rows * variant.trees:
        raise RuntimeError(
            f"{variant.name} trained {stats.rows} rows; its schedule has {schedule.rows * variant.trees}"
        )
    variant.sampling.append((sampled - decoder.seconds) / variant.trees)
    variant.decoding.append(decoder.seconds / variant.trees)
    variant.learning.append(learned / variant.trees)


def ratios(tree: Variant, sequential: Variant, single: Variant) -> dict[str, dict[str, float]]:
    """Each claim with what the counts allow, what was measured, and what is to be reached."""

    def ratio(slow: Variant, fast: Variant, *phases: str) -> float:
        return statistics.median(s / f for s, f in zip(slow.seconds(*phases), fast.seconds(*phases), strict=True))

    return {
        "rollout: sequential / tree": {
            "counts allow": sequential.schedule.forward_passes / tree.schedule.forward_passes,
            "measured": ratio(sequential, tree, "sampling"),
            "to reach": 1.7,
        },
        "learner: sequential / tree": {
            "counts allow": sequential.schedule.rows / tree.schedule.rows,
            "measured": ratio(sequential, tree, "learning"),
            "to reach": 1.8,
        },
        "both: one row per pass / batched": {
            "measured": ratio(single, tree, "sampling", "learning"),
            "to reach": 4.5,
        },
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder for tree_vs_sequential.json.")] = Path("build/bench"),
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 5,
) -> None:
    """Measure what branching and batching save.

    Example: python -m branchgrpo.benchmarks.tree_vs_sequential --out build/bench
    """
    console = Console()
    chosen = variants()
    parts = []
    for variant in chosen:
        policy = load_policy(variant.settings.policy)
        parts.append((variant, policy, Learner(policy, variant.settings), Decoder(policy)))
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for round_number in progress.track(range(rounds + 1), description="measuring"):
            for variant, policy, learner, decoder in parts:
                measure(variant, policy, learner, decoder, round_number)
                if round_number == 0:
                    variant.forget()
    seconds = Table("variant", "forwards", "rows", "sampling", "decoding", "learning", title="milliseconds per tree")
    for variant in chosen:
        times = (f"{variant.median(phase) * 1e3:.0f}" for phase in ("sampling", "decoding", "learning"))
        seconds.add_row(variant.name, str(variant.schedule.forward_passes), str(variant.schedule.rows), *times)
    console.print(seconds)
    claims = ratios(*chosen)
    table = Table("ratio", "counts allow", "measured", "to reach", title=f"medians of {rounds}")
    for name, claim in claims.items():
        table.add_row(
            name, *(f"{claim[k]:.2f}" if k in claim else "" for k in ("counts allow", "measured", "to reach"))
        )
    console.print(table)
    report = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "milliseconds_per_tree": {
            variant.name: {p: variant.median(p) * 1e3 for p in ("sampling", "decoding", "learning")}
            for variant in chosen
        },
        "ratios": claims,
    }
    write_text(out / "tree_vs_sequential.json", json.dumps(report, indent=2) + "\n")
    console.print(f"JSON: {out / 'tree_vs_sequential.json'}")


if __name__ == "__main__":
    typer.run(main)
