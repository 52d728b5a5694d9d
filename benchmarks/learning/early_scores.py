"""How well an early look at a tree's branches tells what becomes of them.

At every depth the clean state that the network predicts for each node is decoded and scored, and compared with the mean
reward of the leaves below the node. Sampling could stop branches without hope where a look finds them while most steps
are still to come.

    python -m branchgrpo.benchmarks.learning.early_scores shapes --reward shapes --out build/bench
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...cluster.commands.evaluate import Subject, find_subjects
from ...cluster.run.folder import load_settings
from ...cluster.run.prompt_order import training_and_held_out
from ...cluster.study.statistics import Estimate, mean
from ...proto.media import Media
from ...proto.schedule import Schedule
from ...proto.tree import Tree
from ...rollout_workers.policies.base import Policy, collate
from ...rollout_workers.policies.decoded import Decoded
from ..support.report import OUT, Out, report_path, write_report
from ..support.scored_trees import Floats, Score, TreeSource, chosen_reward

Look = tuple[Floats, Floats]
"""Scores of the predicted clean states of a tree's nodes at one depth, and mean rewards of the leaves below each."""


@dataclass(frozen=True)
class Agreement:
    """How early scores at one depth agree with what came of it, over trees."""

    bias: Estimate
    """Mean score of the predictions minus mean reward of the leaves."""
    correlation: float
    """Correlation of both within trees; NaN if the nodes of no tree differ."""
    gain: Estimate
    """Mean reward below the better half of a tree's nodes, by early score, minus that of all its leaves."""
    possible: float
    """The gain if the better half is chosen by the rewards themselves."""


def agreement(looks: Sequence[Look]) -> Agreement:
    """The agreement over trees, each with the same number of nodes, two at least."""
    early, late = (np.stack(values) for values in zip(*looks, strict=True))
    centred = [values - values.mean(axis=1, keepdims=True) for values in (early, late)]
    spread = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return Agreement(
        mean((early - late).mean(axis=1)),
        float((centred[0] * centred[1]).sum() / spread) if spread else np.nan,
        mean(_gains(early, late)),
        float(_gains(late, late).mean()),
    )


def _gains(chosen_by: Floats, late: Floats) -> Floats:
    """Gain of each tree, float64 [trees]. Nodes with equal scores share the places that are left."""
    keep = late.shape[1] // 2
    limit = np.sort(chosen_by, axis=1)[:, -keep, None]
    above, at = chosen_by > limit, chosen_by == limit
    weight = above + at * (keep - above.sum(axis=1, keepdims=True)) / at.sum(axis=1, keepdims=True)
    return (weight * late).sum(axis=1) / keep - late.mean(axis=1)


def early_looks(policy: Policy, tree: Tree, rewards: Floats, score: Score, decode_batch: int) -> dict[int, Look]:
    """Depth -> the look at a sampled tree's nodes there, at every depth with several nodes but that of the leaves.

    `rewards` are those of its leaves, float64 [leaves].
    """
    schedule, sigmas = tree.schedule, policy.sigmas(tree.schedule.grid_steps)
    assert tree.conditioning is not None
    looks = {}
    for depth in range(len(schedule.steps)):
        count = schedule.nodes_per_depth[depth]
        if count > 1:
            states, sigma = _states(tree, depth), float(sigmas[schedule.levels[depth]])
            with torch.no_grad():
                conditioning = collate([tree.conditioning] * count)
                velocity = policy.velocity(states, torch.full((count,), sigma, device=policy.device), conditioning)
            clean = states.float() - sigma * velocity.float()
            early = score(_decoded(policy, clean.to(states.dtype), decode_batch), tree.prompt)
            looks[depth] = early, rewards.reshape(count, -1).mean(axis=1)
    return looks


def _states(tree: Tree, depth: int) -> torch.Tensor:
    nodes = range(tree.schedule.first_node[depth], tree.schedule.first_node[depth + 1])
    return torch.stack([tree.state(node) for node in nodes])


@torch.no_grad()
def _decoded(policy: Policy, states: torch.Tensor, batch: int) -> Media:
    return Decoded.joined([Decoded.of(policy.decode(part)) for part in states.split(batch)]).filled().media()


def look_at(
    subject: Subject, prompts: Sequence[str], schedule: Schedule, reward: str, console: Console
) -> dict[int, Agreement]:
    """Depth -> the agreement over a tree for each prompt."""
    source = TreeSource(subject, reward)
    looks: dict[int, list[Look]] = {}
    trees = track(
        source.trees(prompts, schedule),
        subject.label,
        len(prompts),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    for tree in trees:
        batch = source.settings.rollout.decode_batch
        for depth, look in early_looks(source.worker.policy, tree, tree.rewards[reward], source.score, batch).items():
            looks.setdefault(depth, []).append(look)
    return {depth: agreement(of_trees) for depth, of_trees in looks.items()}


def main(
    target: Annotated[Path, typer.Argument(help="A run folder, a recipe, or the name of a shipped one.")],
    override: Annotated[list[str] | None, typer.Argument(help="Settings to replace: key=value.")] = None,
    reward: Annotated[str | None, typer.Option(help="The reward; default: the first of the recipe.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts, a tree for each.")] = 40,
    out: Out = OUT,
) -> None:
    """Compare the scores of predicted clean states with the rewards of the leaves that follow."""
    path, console = report_path(out, "early_scores"), Console()
    settings = load_settings(target, override or ())
    reward = chosen_reward(settings, reward)
    schedule = settings.schedule.build(1, settings.seed)
    train, held_out = training_and_held_out(settings)
    subject = find_subjects(target, settings, ["newest"], False)[0]
    found = look_at(subject, (held_out or train)[:prompts], schedule, reward, console)
    title = f"{subject.label}: {reward} of predictions and of leaves, {prompts} trees of {schedule.leaves} leaves"
    table = Table("step", "nodes", "left", "bias", "correlation", "gain", "possible", title=title)
    report: dict[int, dict[str, Any]] = {}
    for depth, each in found.items():
        left = sum(schedule.nodes_per_depth[depth:-1]) / schedule.forward_passes
        bias, gain = (value.text(lambda number: f"{number:.3f}") for value in (each.bias, each.gain))
        step, count = int(schedule.levels[depth]), schedule.nodes_per_depth[depth]
        last = f"{each.correlation:.2f}", gain, f"{each.possible:.3f}"
        table.add_row(str(step), str(count), f"{left:.0%}", bias, *last)
        report[step] = {
            "nodes": count,
            "passes_left": left,
            "bias": each.bias.value,
            "correlation": each.correlation,
            "gain": each.gain.value,
            "possible": each.possible,
        }
    console.print(table)
    console.print("left: share of the tree's forward passes from this step on. gain: mean reward below the better half")
    console.print("of the nodes by early score, above all leaves' mean; possible: if the half is known to be better.")
    write_report(path, {"policy": subject.label, "reward": reward, "trees": prompts, "steps": report})


if __name__ == "__main__":
    typer.run(main)
