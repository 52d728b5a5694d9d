"""What noise costs: its CPU seconds beside those of the rollouts that need it, and beside a row of FLUX.1-dev on a GPU.

A task of the shipped policies is sampled, and its noise is drawn once more by itself, in turns, with one thread.

    python -m branchgrpo.benchmarks.speed.noise_share --out build/bench
"""

import statistics
import time
from collections.abc import Callable

import torch
import typer
from rich.console import Console
from rich.table import Table

from ...proto.recipe import SHIPPED, load_recipe
from ...proto.settings import RunSettings
from ...proto.tree import Task
from ...rollout_workers.noise import Stream, gaussian
from ...rollout_workers.policies.load import load_policy
from ...rollout_workers.worker import RolloutWorker
from ..support.report import OUT, Out, Rounds, report_path, write_report

FLUX = (2025, 64)
"""Latents of a row of FLUX.1-dev at 720 x 720."""
FLUX_ROW = 0.0933
"""Seconds of its forward pass on an H100 (docs/gpu.md)."""


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of this process in a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def draw_noise(task: Task, shape: tuple[int, ...]) -> None:
    """Draw all noise of a task: of roots, of edges, and what siblings share."""
    schedule = task.schedule
    for tree in task.trees:
        for node in range(schedule.nodes):
            gaussian(task.seed, task.iteration, tree, node, Stream.OWN, shape)
        for depth, step in enumerate(schedule.steps):
            for node in range(*schedule.first_node[depth : depth + 2]) if step.children > 1 else ():
                gaussian(task.seed, task.iteration, tree, node, Stream.SHARED, shape)


def of_recipe(settings: RunSettings, rounds: int) -> dict[str, float]:
    """CPU seconds of a task and of its noise, medians."""
    policy, trees = load_policy(settings.policy), tuple(range(settings.rollout.trees_per_task))
    task = Task(1, trees, tuple(f"{tree}" for tree in trees), settings.schedule.build(1, settings.seed), settings.seed)
    worker = RolloutWorker(policy, settings.rollout)
    taken: dict[str, list[float]] = {"task": [], "noise": []}
    for _ in range(rounds + 1):
        taken["task"].append(cpu_seconds(lambda: list(worker.sample(task))))
        taken["noise"].append(cpu_seconds(lambda: draw_noise(task, policy.latent_shape)))
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def main(out: Out = OUT, rounds: Rounds = 5) -> None:
    """Measure the share of noise in rollouts."""
    path = report_path(out, "noise_share")
    torch.set_num_threads(1)
    table = Table("", "s", "its noise, CPU s", "share")
    report = {}
    for name in ("glyphs", "shapes"):
        report[f"a task of {name}, CPU"] = of_recipe(
            load_recipe(SHIPPED / f"{name}.yaml", ["policy.device=cpu"]), rounds
        )
    row = statistics.median(cpu_seconds(lambda: gaussian(0, 1, 0, 0, Stream.OWN, FLUX)) for _ in range(20 * rounds))
    report["a pass of FLUX.1-dev, one row, H100"] = {"task": FLUX_ROW, "noise": row}
    for name, own in report.items():
        table.add_row(name, f"{own['task']:.4f}", f"{own['noise']:.4f}", f"{own['noise'] / own['task']:.1%}")
    Console().print(table)
    write_report(path, report)


if __name__ == "__main__":
    typer.run(main)
