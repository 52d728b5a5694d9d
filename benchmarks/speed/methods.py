"""Methods against DanceGRPO: what their counts allow, and what is measured.

The embedded policy at 20 steps and 16 leaves, the same batch sizes for all, no edge skipped. With F forward passes, R
trained rows and L leaves per tree, c the cost of a trained row and d that of decoding and scoring a leaf, both in
forward passes and as measured for DanceGRPO, a method's ceiling is (F + cR + dL) of DanceGRPO over its own. Methods
take turns within one run; ratios are medians over rounds of ratios within a round.

    python -m branchgrpo.benchmarks.speed.methods --out build/bench
"""

import io
from collections.abc import Sequence
from datetime import date
from typing import Any

import torch
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from ...proto.atomic_files import write_text
from ...reward_service.scorers import Scorers
from ..support.demo import demo
from ..support.report import OUT, Out, Rounds, report_path, write_report
from .interleaved import Variant, in_one_update, take_turns

TREES = 8
STEPS = 20
TREE = {"steps": STEPS, "eta": 0.7}
ALL_PHASES = ("sampling", "decoding", "scoring", "learning")
PUBLISHED = {"branch_grpo": 698 / 493, "branch_grpo, pruned": 698 / 314, "branch_grpo_mix": 698 / 148}
"""Speedups in the paper's table on FLUX.1-dev: seconds of DanceGRPO's iteration over theirs."""
METHODS: dict[str, dict[str, Any]] = {
    "dance_grpo": {"schedule": {"method": "dance_grpo", **TREE}, "advantage.normaliser": "group"},
    "branch_grpo": {"schedule": {"method": "branch_grpo", **TREE}},
    "branch_grpo, graph kept": {"schedule": {"method": "branch_grpo", **TREE}, "learner.keep_graph": True},
    "branch_grpo, pruned": {
        "schedule": {"method": "branch_grpo", **TREE},
        "pruning": {"width": {"mode": "extreme", "keep": 4}, "depth": {"mode": "fixed", "window": 4}},
    },
    "branch_grpo_mix": {"schedule": {"method": "branch_grpo_mix", **TREE}},
    "branch_grpo_mix, stride 2": {"schedule": {"method": "branch_grpo_mix", **TREE, "ode_stride": 2}},
    "branch_grpo_mix, stride 5": {"schedule": {"method": "branch_grpo_mix", **TREE, "ode_stride": 5}},
    "branch_grpo_mix, stride 5, graph kept": {
        "schedule": {"method": "branch_grpo_mix", **TREE, "ode_stride": 5},
        "learner.keep_graph": True,
    },
    "mix_grpo, stride 5": {
        "schedule": {"method": "mix_grpo", **TREE, "group": 16, "window_start": 4, "ode_stride": 5},
        "advantage.normaliser": "group",
    },
}
"""Method -> changes to the demo's recipe."""


def summary(variants: Sequence[Variant]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Costs c and d in forward passes, and a line for every variant."""
    base = variants[0]
    forward = base.median("sampling") / base.schedule.forward_passes
    costs = {
        "milliseconds per forward row": forward * 1e3,
        "c": base.median("learning") / base.rows / forward,
        "d": (base.median("decoding") + base.median("scoring")) / base.schedule.leaves / forward,
    }

    def cost(of: Variant) -> float:
        return of.schedule.forward_passes + costs["c"] * of.rows + costs["d"] * of.schedule.leaves

    lines = []
    for of in variants:
        ratio, ceiling = base.ratio(of, *ALL_PHASES), cost(base) / cost(of)
        lines.append(
            {
                "method": of.name,
                "F": of.schedule.forward_passes,
                "R": of.rows,
                "L": of.schedule.leaves,
                "milliseconds": {phase: of.median(phase) * 1e3 for phase in ALL_PHASES},
                "ceiling": ceiling,
                "measured": ratio,
                "share of ceiling": ratio / ceiling,
                "published": PUBLISHED.get(of.name),
            }
        )
    return costs, lines


def markdown(costs: dict[str, float], lines: list[dict[str, Any]]) -> str:
    """The lines as a table in Markdown."""
    phases = [f"{phase}, ms" for phase in ALL_PHASES]
    table = Table("method", "F", "R", *phases, "ceiling", "measured", "share", "published", box=MARKDOWN)
    for line in lines:
        milliseconds = (f"{spent:.0f}" for spent in line["milliseconds"].values())
        ratios = (f"{line['ceiling']:.2f}", f"{line['measured']:.2f}", f"{line['share of ceiling']:.0%}")
        published = f"{line['published']:.2f}" if line["published"] else ""
        table.add_row(f"`{line['method']}`", str(line["F"]), f"{line['R']:.0f}", *milliseconds, *ratios, published)
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    return f"c = {costs['c']:.2f}, d = {costs['d']:.2f}, in forward passes of one row.\n{text.getvalue()}"


def main(out: Out = OUT, rounds: Rounds = 5) -> None:
    """Measure an iteration of every method against DanceGRPO's, and write methods.md beside the report."""
    path = report_path(out, "methods", "methods.md")
    console = Console()
    shared = {"execution": "in_process", "advantage.normaliser": "depth", **in_one_update(TREES)}
    variants = [Variant(name, demo({**shared, **changes})) for name, changes in METHODS.items()]
    take_turns(variants, rounds, console, Scorers(variants[0].settings.rewards))
    costs, lines = summary(variants)
    page = markdown(costs, lines)
    console.print(f"medians of {rounds}: {page}", soft_wrap=True, markup=False, highlight=False)
    best = max(lines, key=lambda line: line["measured"])
    console.print(f"best: {best['method']}, {best['measured']:.2f} times as fast as dance_grpo (to reach: 5)")
    machine = {"date": date.today().isoformat(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_report(path, {**machine, "costs": costs, "methods": lines})
    write_text(path.with_suffix(".md"), page)
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
