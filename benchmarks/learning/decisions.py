"""At which noise level a policy decides what a reward looks at.

For every step trees are sampled that split there, once, into many independent children. Siblings that split late share
what was decided before, so the variance of their rewards is what was not yet decided. Where it falls is where a split
tells rewards apart.

    python -m branchgrpo.benchmarks.learning.decisions shapes --reward shapes --out build/bench
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...cluster.commands.evaluate import find_subjects
from ...cluster.run.folder import load_settings
from ...cluster.run.prompt_order import training_and_held_out
from ...cluster.study.statistics import Estimate, mean
from ...proto.schedule import Schedule, tree_schedule
from ..support.report import OUT, Out, report_path, write_report
from ..support.scored_trees import Floats, TreeSource, chosen_reward

START = -1
"""Stands for the start of a tree, in place of a step."""


def probes(schedule: Schedule, children: int, every: int) -> Iterator[tuple[int, Schedule]]:
    """Steps and the schedules that tell what is open there: all samples have starts of their own, and then trees that
    split at every `every`-th noisy step of `schedule`, whose other steps stay as they are."""
    kernel, eta = next((step.kernel, step.eta) for step in schedule.steps if step.trained)
    steps, noisy = schedule.grid_steps, range(0, schedule.grid_steps - 1, every)
    yield START, tree_schedule(steps, kernel=kernel, eta=eta, roots=children)
    for step in noisy:
        yield step, tree_schedule(steps, kernel=kernel, eta=eta, splits={step: children}, sibling_spread=np.inf)


def still_open(rewards: Sequence[Floats]) -> Estimate:
    """Mean variance of the rewards of a tree's leaves, unbiased, over trees."""
    return mean([float(np.var(own, ddof=1)) for own in rewards])


def decided(variances: Mapping[int, float]) -> dict[int, float]:
    """Step -> share of the variance of rewards that is decided from there to the next one, from the variance that is
    open at each. What is open before the first is all. Too few samples can make a share negative."""
    values = list(variances.values())
    later = [*values[1:], 0.0]
    return {step: (here - then) / values[0] for step, here, then in zip(variances, values, later, strict=True)}


def main(
    target: Annotated[Path, typer.Argument(help="A run folder, a recipe, or the name of a shipped one.")],
    override: Annotated[list[str] | None, typer.Argument(help="Settings to replace: key=value.")] = None,
    reward: Annotated[str | None, typer.Option(help="The reward; default: the first of the recipe.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts, a tree for each at every step.")] = 40,
    children: Annotated[int, typer.Option(min=2, help="Children of each split.")] = 8,
    every: Annotated[int, typer.Option(min=1, help="Steps from one split to the next.")] = 1,
    out: Out = OUT,
) -> None:
    """Tell at which steps rewards are decided.

    Example: python -m branchgrpo.benchmarks.learning.decisions shapes --reward shapes_exact --every 2
    """
    path, console = report_path(out, "decisions"), Console()
    settings = load_settings(target, override or ())
    reward = chosen_reward(settings, reward)
    schedule = settings.schedule.build(1, settings.seed)
    if not any(step.trained for step in schedule.steps):
        raise typer.BadParameter(
            "schedule has no step with noise; take a method that trains edges", param_hint="override"
        )
    train, held_out = training_and_held_out(settings)
    subject = find_subjects(target, settings, ["newest"], False)[0]
    source, chosen = TreeSource(subject, reward), (held_out or train)[:prompts]
    open_: dict[int, Estimate] = {}
    planned = list(probes(schedule, children, every))
    for step, probe in track(planned, subject.label, console=console, transient=True, disable=not console.is_terminal):
        open_[step] = still_open([tree.rewards[reward] for tree in source.trees(chosen, probe)])
    shares = decided({step: own.value for step, own in open_.items()})
    levels = source.worker.policy.sigmas(schedule.grid_steps)
    table = Table(
        "from step", "noise level", "variance still open", "share decided from here to the next", title=reward
    )
    report: dict[str, Any] = {}
    for step, own in open_.items():
        name, level = ("start", "") if step == START else (str(step), f"{levels[step]:.3f}")
        table.add_row(name, level, own.text("{:.4f}".format), f"{shares[step]:.0%}")
        report[name] = {"open": own.value, "low": own.low, "high": own.high, "decided": shares[step]}
    console.print(table)
    write_report(path, {"policy": subject.label, "reward": reward, "prompts": len(chosen), "steps": report})


if __name__ == "__main__":
    typer.run(main)
