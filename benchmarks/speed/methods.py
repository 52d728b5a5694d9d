"""Methods against DanceGRPO: what their counts allow, and what is measured.

The embedded policy at 20 steps and 16 leaves, the same batch sizes for all, no edge skipped. With F forward passes, R
trained rows and L leaves per tree, c the cost of a trained row and d that of decoding and scoring a leaf, both in
forward passes and as measured for DanceGRPO, a method's ceiling is (F + cR + dL) of DanceGRPO over its own. Methods
take turns within one run; ratios are medians over rounds of ratios within a round.

    python -m branchgrpo.benchmarks.speed.methods --out build/bench
"""

import statistics
from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ...proto.atomic_files import write_text
from ...proto.recipe import load_recipe, parse_settings
from ...reward_service.scorers import Scorers
from ..support.report import report_path, write_report
from .interleaved import Runner, Variant, with_trees

TREES = 8
STEPS = 20
TREE = {"steps": STEPS, "eta": 0.7}
EVERYTHING = ("sampling", "decoding", "scoring", "learning")
PUBLISHED = {"branch_grpo": 698 / 493, "branch_grpo, pruned": 698 / 314, "branch_grpo_mix": 698 / 148}
"""Speedups in the paper's table on FLUX.1-dev: seconds of DanceGRPO's iteration over theirs."""
METHODS: dict[str, dict[str, Any]] = {
    "dance_grpo": {"schedule": {"method": "dance_grpo", **TREE}, "normaliser": "group"},
    "branch_grpo": {"schedule": {"method": "branch_grpo", **TREE}},
    "branch_grpo, graph kept": {"schedule": {"method": "branch_grpo", **TREE}, "learner": {"keep_graph": True}},
    "branch_grpo, pruned": {
        "schedule": {"method": "branch_grpo", **TREE},
        "pruning": {"width": {"mode": "extreme", "keep": 4}, "depth": {"mode": "fixed", "window": 4}},
    },
    "branch_grpo_mix": {"schedule": {"method": "branch_grpo_mix", **TREE}},
    "branch_grpo_mix, stride 2": {"schedule": {"method": "branch_grpo_mix", **TREE, "ode_stride": 2}},
    "branch_grpo_mix, stride 5": {"schedule": {"method": "branch_grpo_mix", **TREE, "ode_stride": 5}},
    "branch_grpo_mix, stride 5, graph kept": {
        "schedule": {"method": "branch_grpo_mix", **TREE, "ode_stride": 5},
        "learner": {"keep_graph": True},
    },
    "mix_grpo, stride 5": {
        "schedule": {"method": "mix_grpo", **TREE, "group": 16, "window_start": 4, "ode_stride": 5},
        "normaliser": "group",
    },
}


def variant(name: str, given: dict[str, Any]) -> Variant:
    """A method on the demo's policy and rewards."""
    demo = load_recipe(Path(str(files("branchgrpo") / "recipes" / "glyphs.yaml"))).model_dump()
    demo["advantage"]["normaliser"] = given.get("normaliser", "depth")
    demo["learner"].update(updates_per_iteration=1, **given.get("learner", {}))
    sections = {"execution": "in_process", "schedule": given["schedule"], "pruning": given.get("pruning", {})}
    return Variant(name, with_trees(parse_settings({**demo, **sections}), TREES), TREES)


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
        ratio = statistics.median(
            slow / fast for slow, fast in zip(base.seconds(*EVERYTHING), of.seconds(*EVERYTHING), strict=True)
        )
        ceiling = cost(base) / cost(of)
        lines.append(
            {
                "method": of.name,
                "F": of.schedule.forward_passes,
                "R": of.rows,
                "L": of.schedule.leaves,
                "milliseconds": {phase: of.median(phase) * 1e3 for phase in EVERYTHING},
                "ceiling": ceiling,
                "measured": ratio,
                "share of ceiling": ratio / ceiling,
                "published": PUBLISHED.get(of.name),
            }
        )
    return costs, lines


def markdown(costs: dict[str, float], lines: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    head = ["method", "F", "R", *(f"{phase}, ms" for phase in EVERYTHING), "ceiling", "measured", "share", "published"]
    rows = [
        [
            f"`{line['method']}`",
            str(line["F"]),
            f"{line['R']:.0f}",
            *(f"{line['milliseconds'][phase]:.0f}" for phase in EVERYTHING),
            f"{line['ceiling']:.2f}",
            f"{line['measured']:.2f}",
            f"{line['share of ceiling']:.0%}",
            f"{line['published']:.2f}" if line["published"] else "",
        ]
        for line in lines
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
    return f"c = {costs['c']:.2f}, d = {costs['d']:.2f}, in forward passes of one row.\n\n{table}\n"


def main(
    out: Annotated[Path, typer.Option(help="Folder for methods.json and methods.md.")] = Path("build/bench"),
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 5,
) -> None:
    """Measure an iteration of every method against DanceGRPO's.

    Example: python -m branchgrpo.benchmarks.speed.methods --out build/bench
    """
    path = report_path(out, "methods", "methods.md")
    console = Console()
    variants = [variant(name, given) for name, given in METHODS.items()]
    scorers = Scorers(variants[0].settings.rewards)
    runners = [Runner(each, scorers) for each in variants]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for number in progress.track(range(rounds + 1), description="measuring"):
            for runner in runners:
                runner.round(number)
                if number == 0:
                    runner.variant.forget()
    costs, lines = summary(variants)
    table = Table("method", "F", "R", "ceiling", "measured", "share", "published", title=f"medians of {rounds}")
    for line in lines:
        published = f"{line['published']:.2f}" if line["published"] else ""
        figures = (f"{line['ceiling']:.2f}", f"{line['measured']:.2f}", f"{line['share of ceiling']:.0%}")
        table.add_row(line["method"], str(line["F"]), f"{line['R']:.0f}", *figures, published)
    console.print(table)
    best = max(lines, key=lambda line: line["measured"])
    console.print(f"best: {best['method']}, {best['measured']:.2f} times as fast as dance_grpo (to reach: 5)")
    report = {
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "costs": costs,
        "methods": lines,
    }
    write_report(path, report)
    write_text(path.with_suffix(".md"), markdown(costs, lines))
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
