"""What branching and batching save: a tree's rollout and update against sequential sampling, and against single rows.

Same policy, prompts, number of leaves, steps and batch sizes; no edge is skipped, so every trained row is paid for.
Variants take turns within one run, and what is reported are medians over rounds of ratios within a round: they hold on
any machine, and neighbours that come and go disturb them little.

    python -m branchgrpo.benchmarks.speed.tree_vs_sequential --out build/bench
"""

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..support.demo import demo
from ..support.report import OUT, Out, Rounds, report_path, write_report
from .interleaved import Variant, in_one_update, take_turns

TREES = 8
PHASES = ("sampling", "decoding", "learning")


def variants() -> tuple[Variant, Variant, Variant]:
    """The tree, sequential sampling of as many leaves, and the tree with one row per pass."""
    tree = demo(in_one_update(TREES))
    same = {name: getattr(tree.schedule, name) for name in ("steps", "kernel", "eta")}
    alone = {"method": "dance_grpo", "group": tree.schedule.build().leaves, **same}
    rows = ("rollout.max_batch_rows", "rollout.decode_batch", "learner.rows_per_micro_batch")
    return (
        Variant("tree", tree),
        Variant("sequential", demo({**in_one_update(TREES), "schedule": alone, "advantage.normaliser": "group"})),
        Variant("tree, one row per pass", demo({**in_one_update(1), **dict.fromkeys(rows, 1)})),
    )


def ratios(tree: Variant, sequential: Variant, single: Variant) -> dict[str, dict[str, float]]:
    """Each claim with what the counts allow, what was measured, and what is to be reached."""
    return {
        "rollout: sequential / tree": {
            "counts allow": sequential.schedule.forward_passes / tree.schedule.forward_passes,
            "measured": sequential.ratio(tree, "sampling"),
            "to reach": 1.7,
        },
        "learner: sequential / tree": {
            "counts allow": sequential.schedule.rows / tree.schedule.rows,
            "measured": sequential.ratio(tree, "learning"),
            "to reach": 1.8,
        },
        "both: one row per pass / batched": {
            "measured": single.ratio(tree, "sampling", "learning"),
            "to reach": 4.5,
        },
    }


def main(out: Out = OUT, rounds: Rounds = 5) -> None:
    """Measure what branching and batching save."""
    path = report_path(out, "tree_vs_sequential")
    console = Console()
    chosen = variants()
    take_turns(chosen, rounds, console)
    milliseconds = {variant.name: {phase: variant.median(phase) * 1e3 for phase in PHASES} for variant in chosen}
    table = Table("variant", "forwards", "rows", *PHASES, title="milliseconds per tree")
    for variant in chosen:
        counts = (str(variant.schedule.forward_passes), str(variant.schedule.rows))
        table.add_row(variant.name, *counts, *(f"{spent:.0f}" for spent in milliseconds[variant.name].values()))
    console.print(table)
    claims, columns = ratios(*chosen), ("counts allow", "measured", "to reach")
    table = Table("ratio", *columns, title=f"medians of {rounds}")
    for name, claim in claims.items():
        table.add_row(name, *(f"{claim[column]:.2f}" if column in claim else "" for column in columns))
    console.print(table)
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    write_report(path, {**machine, "milliseconds_per_tree": milliseconds, "ratios": claims})
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
