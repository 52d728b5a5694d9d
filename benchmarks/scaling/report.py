"""What limits FLUX.1-dev on 8, 64 and 512 GPUs: measured sizes and messages, and a simulation compared with real runs.

Sizes are those of the real architecture and of what really travels; what the controller and the object store bear is
measured here; the seconds of GPUs are assumed, from counted FLOPs and a utilisation. The simulation's way of scheduling
is held against real runs with workers, a reward model and a learner that sleep.

    python -m branchgrpo.benchmarks.scaling.report --out build/bench
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ...cluster.plan.costs import Cluster, Costs
from ...cluster.plan.gpus import OBJECT_STORE, find_gpu
from ...cluster.plan.reward_shapes import VIT_H
from ...cluster.plan.simulation import Outcome, simulate
from ...proto.remote_tree import states_of
from ...proto.settings import RunSettings
from ...proto.settings_errors import parse_settings
from ...proto.tree import Task
from ..support.model_sizes import PIXELS, Counted, count
from ..support.part_sizes import sampled_tree, sizes
from ..support.report import OUT, Out, Rounds, report_path, write_report
from . import microbenchmarks
from .validation import check

GPUS = (8, 64, 512)
PER_NODE = 8
MODES: dict[str, dict[str, Any]] = {
    "separate": {},
    "separate, staleness 1": {"staleness": 1},
    "colocated": {"placement": "colocated"},
}
GIGA = 1e9
H100 = find_gpu("h100")
WINDOWS = 16
"""Maximum number of windows in an iteration."""


@dataclass(frozen=True)
class Assumed:
    """Assumptions about what can't be measured here: an H100, and the network between nodes of eight. Peak and links
    are a plan's."""

    flops: float = H100.bfloat16
    """Peak in bfloat16, dense."""
    utilisation: float = 0.4
    """Share of it that the transformer reaches, in rollouts and learner."""
    other_utilisation: float = 0.2
    """Share of the peak that the VAE and the reward model reach."""
    network: float = OBJECT_STORE
    """Bytes per second that Ray's object store moves out of a node, and into one."""
    collective: float = H100.collectives(across_nodes=True)
    """Bytes per second of what learner ranks exchange across nodes."""
    nvlink: float = H100.collectives(across_nodes=False)
    """Bytes per second of what learner ranks exchange within a node."""
    to_gpu: float = H100.copies
    """Bytes per second from main memory to a GPU."""
    trees_per_gpu: float = 4
    """Prompts per iteration over GPUs."""


def recipe(gpus: int, workers: int, assumed: Assumed, changes: Mapping[str, Any]) -> RunSettings:
    """The paper's tree (16 leaves, 20 steps) at 720 x 720, one tree per task, one part per tree."""
    trees = round(gpus * assumed.trees_per_gpu)
    colocated = changes.get("placement") == "colocated"
    return parse_settings(
        {
            "name": "flux",
            "policy": {"pretrained": "FLUX.1-dev"},
            "prompts": {"train": "prompts.txt", "per_iteration": trees},
            "rewards": {"hps": {}},
            "schedule": {"method": "branch_grpo", "steps": 20},
            "rollout": {"trees_per_task": 1, "max_batch_rows": 16},
            "learner": {"window_trees": max(8, trees // WINDOWS), "rows_per_micro_batch": 8, "zero_stage": 2},
            "pools": {
                "rollout_workers": {"count": workers},
                "learner": {"count": gpus if colocated else gpus - workers},
                "rewards": {"hps": {"replicas": math.ceil(gpus / 64)}},
            },
            **changes,
        }
    )


def costs_of(counted: Counted, measured: Mapping[str, float], assumed: Assumed, lora: bool, gpus: int) -> Costs:
    """Seconds of a GPU, from FLOPs; the rest as it was measured.

    With gradient checkpointing a trained row takes four forward passes (forward, again, and backward as two), or three
    where only adapters have gradients.
    """
    forward = counted.forward_flops / (assumed.flops * assumed.utilisation)
    other = assumed.flops * assumed.other_utilisation
    weights = counted.lora_bytes if lora else counted.full_bytes
    reduced = weights / (assumed.nvlink if gpus <= PER_NODE else assumed.collective)
    return Costs(
        forward_row=forward,
        decode_picture=counted.decode_flops / other,
        score_picture=counted.score_flops / other + measured["prepare"],
        micro_batch=reduced,
        learn_row=forward * (3 if lora else 4),
        update=reduced,
        load_weights=weights / assumed.to_gpu,
        picture_bytes=measured["picture"],
        state_bytes=measured["state"],
        conditioning_bytes=measured["conditioning"],
        weights_bytes=weights,
        put=measured["put"],
        network=assumed.network,
        latency=0.002,
        part_message=measured["part message"],
        score_reply=measured["score reply"],
        window_tree=measured["window tree"],
        window_rank=measured["window rank"],
    )


@dataclass(frozen=True)
class Simulated:
    """The best division of the GPUs for a setting, and what limits it."""

    weights: str
    gpus: int
    mode: str
    workers: int
    ranks: int
    seconds: float
    ideal: float
    """Seconds if every GPU always worked."""
    outcome: Outcome
    gains: dict[str, float]
    """Seconds over those with one part twice as fast."""

    @property
    def limits(self) -> list[str]:
        """The two parts that limit most, with their gains."""
        parts = sorted(self.gains, key=lambda part: -self.gains[part])[:2]
        return [f"{part} {self.gains[part]:.2f}" for part in parts]


def best(gpus: int, mode: str, costs: Costs, assumed: Assumed, weights: str) -> Simulated:
    """The fastest simulation among several numbers of workers, around the balance of rollouts and learning."""

    def run(workers: int, costs: Costs) -> Outcome:
        settings = recipe(gpus, workers, assumed, MODES[mode])
        return simulate(settings, costs, Cluster.of(settings, PER_NODE), iterations=3)

    schedule = recipe(gpus, 1, assumed, MODES[mode]).schedule.build()
    rollout = schedule.forward_passes * costs.forward_row + schedule.leaves * costs.decode_picture
    learner = schedule.rows * costs.learn_row
    ideal = round(gpus * assumed.trees_per_gpu) * (rollout + learner) / gpus
    balance = gpus * rollout / (rollout + learner)
    tried = {min(max(round(balance * share), 1), gpus - 1) for share in (0.8, 1.0, 1.2)}
    outcomes = {workers: run(workers, costs) for workers in ({gpus} if mode == "colocated" else sorted(tried))}
    workers = min(outcomes, key=lambda workers: outcomes[workers].seconds[1])
    seconds = outcomes[workers].seconds[1]
    gains = {part: seconds / run(workers, other).seconds[1] for part, other in costs.twice_as_fast().items()}
    ranks = gpus if mode == "colocated" else gpus - workers
    return Simulated(weights, gpus, mode, workers, ranks, seconds, ideal, outcomes[workers], gains)


def enough_until(result: Simulated, costs: Costs, assumed: Assumed) -> float:
    """GPUs at which the controller would be busy all the time, with as many trees per GPU and seconds per iteration."""
    per_tree = costs.part_message + costs.score_reply + costs.window_tree
    per_rank = 2 * WINDOWS * costs.window_rank  # to fetch its states, and to learn from it
    return result.seconds / (assumed.trees_per_gpu * per_tree + per_rank * result.ranks / result.gpus)


def measure(console: Console) -> tuple[Counted, dict[str, float]]:
    """Sizes, and what is borne here."""
    counted = count()
    settings = recipe(8, 1, Assumed(), {})
    task = Task(1, (0,), ("a prompt of twenty words or so",), settings.schedule.build(), seed=0)
    parts = sampled_tree(task, settings.rollout)
    one, two = (microbenchmarks.controller_seconds(models) for models in (1, 2))
    reply = max(two - one, 0.0)
    measured = {
        **sizes(parts[0]),
        **microbenchmarks.on_one_node(parts, states_of(parts[0]), task, settings.learner.window_trees),
        "between nodes": microbenchmarks.between_nodes(),
        "prepare": microbenchmarks.prepared_picture(PIXELS, VIT_H.image_size),
        "part message": max(one - reply, 0.0),
        "score reply": reply,
    }
    table = Table("what travels", "size", title="FLUX.1-dev, 720 x 720")
    for name in ("header", "picture", "state", "conditioning"):
        table.add_row(name, f"{measured[name] / 1e6:.3f} MB")
    tree = measured["nodes"] * measured["state"] + measured["conditioning"]
    table.add_row(f"states of a tree ({measured['nodes']} nodes, float32)", f"{tree / 1e6:.0f} MB")
    table.add_row(f"weights ({counted.parameters / 1e9:.2f} B, bfloat16)", f"{counted.full_bytes / GIGA:.1f} GB")
    table.add_row(f"LoRA ({counted.lora_parameters / 1e6:.1f} M, float32)", f"{counted.lora_bytes / 1e6:.0f} MB")
    for name, value in (("forward pass, a row", counted.forward_flops), ("decoding", counted.decode_flops)):
        table.add_row(name, f"{value / 1e12:.2f} TFLOP")
    table.add_row("scoring (ViT-H/14)", f"{counted.score_flops / 1e12:.2f} TFLOP")
    console.print(table)
    table = Table("what is borne here", "", title=f"{os.cpu_count()} CPU cores")
    table.add_row("controller: a part, without the reply", f"{1e3 * measured['part message']:.2f} ms")
    table.add_row("controller: a reply", f"{1e3 * reply:.2f} ms")
    table.add_row("controller: a part with one reward model", f"{1 / one:.0f} a second")
    table.add_row("controller: a tree of a window", f"{1e3 * measured['window tree']:.3f} ms")
    table.add_row("controller: a window to a rank", f"{1e3 * measured['window rank']:.3f} ms")
    for name in ("put", "get", "between nodes"):
        table.add_row(f"object store: {name}", f"{measured[name] / GIGA:.2f} GB/s")
    table.add_row("a picture made ready for its scorer", f"{1e3 * measured['prepare']:.1f} ms")
    console.print(table)
    return counted, measured


def show(results: Sequence[Simulated], console: Console) -> None:
    """Print the results as a table."""
    busy = ("rollout", "learner", "rewards", "controller", "network")
    waits = ("weights", "states", "publishing")
    table = Table(
        "weights", "GPUs", "mode", "workers + ranks", "s", "of ideal", *busy, *waits, "limited by", title="simulated"
    )
    for r in results:
        shares = (f"{r.outcome.busy[name]:.1%}" for name in busy)
        waiting = (f"{r.outcome.waiting[name]:.1%}" for name in waits)
        division = f"{r.workers} + {r.ranks}" if r.mode != "colocated" else str(r.workers)
        ideal = f"{r.ideal / r.seconds:.0%}"
        table.add_row(
            r.weights, str(r.gpus), r.mode, division, f"{r.seconds:.0f}", ideal, *shares, *waiting, ", ".join(r.limits)
        )
    console.print(table)
    console.print("limited by: by how much an iteration is shorter if a part is twice as fast; the two parts with most")


def draw(results: Sequence[Simulated], path: Path) -> None:
    """Share of the ideal over the number of GPUs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, weights in zip(axes, ("full", "LoRA"), strict=True):
        for mode in MODES:
            line = [r for r in results if (r.weights, r.mode) == (weights, mode)]
            axis.plot([r.gpus for r in line], [100 * r.ideal / r.seconds for r in line], marker="o", label=mode)
        axis.set(xscale="log", xlabel="GPUs", title=f"FLUX.1-dev, {weights}", ylim=(0, 105), xticks=[])
        axis.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    axes[0].set_ylabel("simulated, % of all GPUs always busy")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(
    out: Out = OUT,
    rounds: Rounds = 3,
    real: Annotated[bool, typer.Option(help="Whether the simulation is checked against real runs.")] = True,
    utilisation: Annotated[float, typer.Option(help="Assumed share of a GPU's peak.")] = Assumed.utilisation,
    network: Annotated[float, typer.Option(help="Assumed GB/s of a node's object store.")] = Assumed.network / GIGA,
    trees_per_gpu: Annotated[float, typer.Option(help="Prompts per iteration over GPUs.")] = Assumed.trees_per_gpu,
    measured_in: Annotated[
        Path | None,
        typer.Option("--measured", help="Report whose sizes and speeds are taken, not measured anew."),
    ] = None,
) -> None:
    """Measure, check and simulate what limits large runs.

    Example: python -m branchgrpo.benchmarks.scaling.report --out build/bench --network 20
    """
    path = report_path(out, "scaling", "scaling.png")
    console = Console(width=200)
    assumed = Assumed(utilisation=utilisation, network=network * GIGA, trees_per_gpu=trees_per_gpu)
    compared = check(console, rounds) if real else []
    if measured_in:
        counted, measured = count(), json.loads(measured_in.read_text())["measured"]
    else:
        counted, measured = measure(console)
    results, enough = [], {}
    for weights in ("full", "LoRA"):
        for mode in MODES:
            for gpus in GPUS:
                costs = costs_of(counted, measured, assumed, weights == "LoRA", gpus)
                results.append(best(gpus, mode, costs, assumed, weights))
            enough[f"{weights}, {mode}"] = enough_until(results[-1], costs, assumed)
    show(results, console)
    for name, gpus_then in enough.items():
        console.print(f"{name}: one controller would be busy all the time at {gpus_then:.0f} GPUs", highlight=False)
    report = {
        "assumed": asdict(assumed),
        "counted": asdict(counted),
        "measured": measured,
        "real and simulated": [{**asdict(c), "ratio": c.ratio} for c in compared],
        "simulated": [{**vars(r), "outcome": vars(r.outcome), "limits": r.limits} for r in results],
        "GPUs at which the controller is busy": enough,
    }
    write_report(path, report)
    draw(results, path.with_suffix(".png"))
    console.print(f"JSON: {path}, picture: {path.with_suffix('.png')}")


if __name__ == "__main__":
    typer.run(main)
