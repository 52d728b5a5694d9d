"""What branching and batching save: a tree's rollout and update against sequential sampling, and against single rows.

Same policy, prompts, number of leaves, steps and batch sizes; no edge is skipped, so every trained row is paid for.
Variants take turns within one run, and what is reported are medians over rounds of ratios within a round: they hold on
any machine, and neighbours that come and go disturb them little.

    python -m branchgrpo.benchmarks.speed.tree_vs_sequential --out build/bench
"""

import statistics
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ...proto.recipe import load_recipe
from ...proto.settings import ScheduleSettings
from ..support.report import report_path, write_report
from .interleaved import Runner, Variant, with_trees

TREES = 8


def variants() -> list[Variant]:
    """The tree, sequential sampling of as many leaves, and the tree with one row per pass."""
    tree = load_recipe(Path(str(files("branchgrpo") / "recipes" / "glyphs.yaml")))
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
            "rollout": tree.rollout.model_copy(update={"max_batch_rows": 1, "decode_batch": 1}),
            "learner": tree.learner.model_copy(update={"rows_per_micro_batch": 1}),
        }
    )
    return [
        Variant("tree", with_trees(tree, TREES), TREES),
        Variant("sequential", with_trees(sequential, TREES), TREES),
        Variant("tree, one row per pass", with_trees(single, 1), 1),
    ]


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

    Example: python -m branchgrpo.benchmarks.speed.tree_vs_sequential --out build/bench
    """
    path = report_path(out, "tree_vs_sequential")
    console = Console()
    chosen = variants()
    runners = [Runner(variant) for variant in chosen]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for round_number in progress.track(range(rounds + 1), description="measuring"):
            for runner in runners:
                runner.round(round_number)
                if round_number == 0:
                    runner.variant.forget()
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
    write_report(path, report)
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
