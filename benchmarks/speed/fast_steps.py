"""What fast deterministic steps cost in accuracy: the last stretch of a tree in fewer steps, against a fine one.

From the states in which a tree of the demo's policy begins its last, deterministic stretch (ten of twenty steps),
leaves are computed with every stride, by the multistep solver and by Euler's method, and compared with 160 Euler steps.

    python -m branchgrpo.benchmarks.speed.fast_steps --out build/bench
"""

from itertools import pairwise

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from ...proto.methods import branch_grpo_mix
from ...proto.scoring import ScoreRequest
from ...proto.tree import Task, Tree
from ...reward_service.scorers import Scorers
from ...rollout_workers.kernels import multistep, step_coefficients
from ...rollout_workers.policies.base import Policy, collate
from ...rollout_workers.policies.decoded import Decoded
from ...rollout_workers.policies.load import load_policy
from ...rollout_workers.worker import RolloutWorker
from ..support.demo import demo
from ..support.report import OUT, Out, report_path, write_report

STEPS, STRETCH, TREES = 20, 10, 8
STRIDES = (1, 2, 3, 5, 10)
FINE_STEPS = 160


@torch.no_grad()
def finished(
    policy: Policy, x: torch.Tensor, conditioning: dict[str, torch.Tensor], levels: list[float], solver: str
) -> torch.Tensor:
    """Leaves from the states `x`, over the noise levels given, by `euler` or `dpm`."""
    before: tuple[float, torch.Tensor] | None = None
    for s, s_next in pairwise(levels):
        v = policy.velocity(x, torch.full([len(x)], s), conditioning).float()
        if solver == "dpm" and before:
            step = multistep(before[0], s, s_next)
            after = step.a * x + step.b * v + step.c * before[1]
        else:
            step = step_coefficients("ode", s, s_next, 0.0, s)
            after = step.a * x + step.b * v
        before, x = (s, x - s * v), after
    return x


def main(out: Out = OUT) -> None:
    """Measure how far leaves of fast deterministic steps are from those of fine ones."""
    path = report_path(out, "fast_steps")
    settings = demo({})
    policy, scorers = load_policy(settings.policy), Scorers(settings.rewards)
    schedule = branch_grpo_mix(steps=STEPS, eta=0.7)
    prompts = tuple(f"{i:03d}" for i in range(0, 1000, 1000 // TREES))[:TREES]
    trees = [Tree(i, prompt, schedule) for i, prompt in enumerate(prompts)]
    worker = RolloutWorker(policy, settings.rollout)
    for part in worker.sample(Task(1, tuple(range(TREES)), prompts, schedule, seed=0)):
        trees[part.tree].add(part)
    depth = STEPS - STRETCH
    begin = range(schedule.first_node[depth], schedule.first_node[depth + 1])
    x = torch.stack([tree.state(node) for tree in trees for node in begin]).float()
    texts = [prompt for prompt in prompts for _ in begin]
    conditioning = collate([given for given in worker.embeddings.of(prompts) for _ in begin])
    sigmas = policy.sigmas(STEPS)[depth:]
    grid = np.interp(np.linspace(0, STRETCH, FINE_STEPS + 1), np.arange(STRETCH + 1), sigmas)
    fine = finished(policy, x, conditioning, grid.tolist(), "euler")

    def exact(leaves: torch.Tensor) -> float:
        """Share of the leaves that the OCR model reads as they should be."""
        with torch.no_grad():
            parts = leaves.split(settings.rollout.decode_batch)
            media = Decoded.joined([Decoded.of(policy.decode(part)) for part in parts]).media()
        return float(scorers.score(ScoreRequest(media, texts, ["ocr_exact"])).scores["ocr_exact"].mean())

    table = Table("stride", "steps", "error, dpm", "error, Euler", "read, dpm", "read, Euler", title="leaves")
    report: dict[str, object] = {"fine": {"read": exact(fine)}}
    for stride in STRIDES:
        parts = np.array_split(np.arange(STRETCH), -(-STRETCH // stride))
        levels = [sigmas[0], *(sigmas[int(part[-1]) + 1] for part in parts)]
        row = {}
        for solver in ("dpm", "euler"):
            leaves = finished(policy, x, conditioning, levels, solver)
            row[solver] = {"error": float((leaves - fine).norm() / fine.norm()), "read": exact(leaves)}
        errors, read = ([f"{row[solver][key]:.3f}" for solver in row] for key in ("error", "read"))
        table.add_row(str(stride), str(len(parts)), *errors, *read)
        report[f"stride {stride}"] = row
    console = Console()
    console.print(table)
    console.print("error: root mean square, relative to leaves of 160 Euler steps; read: exactly by the OCR model")
    write_report(path, report)


if __name__ == "__main__":
    typer.run(main)
