"""FLUX.1-dev's architecture at full size on one GPU, with random weights: what branching saves there.

A tree against 16 sequential trajectories, batched and one row per forward pass; the share of the card's peak that a
forward pass reaches; peak memory; LoRA updates in full, pruned and mix, compiled or not; and whole iterations in which
one process samples, scores (a ViT-H/14) and learns in turns. Also by how much the learner's log-probabilities differ
from the rollout's. Nothing but torch, diffusers, peft, transformers and the pure parts of this package: neither Ray nor
DeepSpeed.

    python -m branchgrpo.benchmarks.speed.gpu --out build/bench
    python -m branchgrpo.benchmarks.speed.gpu --tiny   (a small network on any device, to see that all of it runs)
"""

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import CLIPVisionModel

from ...cluster.plan.flops import count_flops
from ...cluster.plan.gpus import GPUS
from ...learner.credit import tree_credit
from ...learner.objective import clipped_objective, means_logprobs, predicted_means
from ...learner.rows import micro_batches, pick_rows
from ...proto.methods import branch_grpo, branch_grpo_mix, dance_grpo
from ...proto.schedule import Schedule
from ...proto.settings import (
    AdvantageSettings,
    DepthPruningSettings,
    LoraSettings,
    PruningSettings,
    RolloutSettings,
    WidthPruningSettings,
)
from ...proto.tree import Task, Tree
from ...reward_service.preprocessing import cropped, prepared
from ...rollout_workers.expansion import expand
from ...rollout_workers.kernels import CoefficientTable, relative_noise
from ...rollout_workers.policies.base import trainable
from ..support.random_flux import FULL_SCALE, TINY_SCALE, RandomFlux, Scale
from ..support.report import OUT, Out, report_path, write_report

Result = TypeVar("Result")
PEAK_TFLOPS = GPUS["h100"].bfloat16 / 1e12
ITERATION = 1
STRIDE, STRIDES = 5, "mix, five steps as one"
"""Deterministic steps that are taken as one, and the name of that part."""
BRANCHING = ("tree", "tree, pruned", "mix", STRIDES)
CLIP_RANGE = 1e-4
PRUNING = PruningSettings(
    width=WidthPruningSettings(mode="parent_top1"), depth=DepthPruningSettings(mode="sliding", window=4)
)


class Bench:
    """One network with adapters on one device, and what can be timed with it."""

    def __init__(self, scale: Scale, device: torch.device, *, compiled: bool) -> None:
        torch.manual_seed(0)
        self.scale, self.device = scale, device
        self.policy = RandomFlux(scale, device, compiled=compiled)
        self.tower = CLIPVisionModel(scale.tower).to(device, torch.bfloat16).requires_grad_(False).eval()
        self.conditioning = self.policy.encode("a prompt")
        self._numbers = count()
        self.policy.add_lora(LoraSettings())
        for name, parameter in trainable(self.policy.network).items():
            if "lora_B" in name:  # which begin at zero: nothing would be known of the others' gradients
                torch.nn.init.normal_(parameter, std=1e-3)
        self.policy.checkpoint_gradients()
        self.optimizer = torch.optim.AdamW(trainable(self.policy.network).values(), lr=1e-5)

    def rollout(self, schedule: Schedule, rows: int) -> tuple[Tree, np.ndarray]:
        """A whole tree or group, and its pictures in the order of the leaves."""
        number = next(self._numbers)
        task = Task(ITERATION, (number,), ("a prompt",), schedule, seed=0)
        settings = RolloutSettings(max_batch_rows=rows, decode_batch=min(rows, 4))
        tree, pictures = Tree(number, "a prompt", schedule), []
        for part in expand(self.policy, task, [self.conditioning], settings):
            tree.add(part)
            pictures.append(part.media.looks())
        return tree, np.concatenate(pictures)

    @torch.no_grad()
    def score(self, tree: Tree, pictures: np.ndarray) -> None:
        """Through the tower; scores are made up, for random weights tell nothing apart."""
        pixels = prepared(pictures, self.scale.tower.image_size, cropped, self.device).to(torch.bfloat16)
        self.tower(pixel_values=pixels)
        leaves = np.arange(tree.schedule.first_node[-2], tree.schedule.nodes)
        tree.add_scores(leaves, {"made up": np.random.default_rng(tree.number).random(len(leaves))})

    def update(self, tree: Tree, pruning: PruningSettings, rows: int) -> tuple[int, float]:
        """An optimizer step from one tree. Returns how many rows it took, and by how much a log-probability differs
        from the rollout's at most.
        """
        schedule = tree.schedule
        sigmas = self.policy.sigmas(schedule.grid_steps)
        transitions = CoefficientTable.of(schedule, sigmas)
        advantage = AdvantageSettings(normaliser="group" if schedule.roots > 1 else "depth")
        credit = tree_credit(tree, {"made up": 1.0}, advantage, pruning, ITERATION, relative_noise(schedule, sigmas))
        picked, differs = pick_rows([tree], [credit]), torch.zeros((), device=self.device)
        for batch in micro_batches(picked, [tree], [credit], rows=rows):
            batch = batch.to(self.device)
            means = predicted_means(self.policy.velocity, transitions, batch)
            logprobs = means_logprobs(transitions, batch, means)
            clipped_objective(logprobs, batch.logprobs, batch.advantages, batch.weights, CLIP_RANGE).loss.backward()
            differs = torch.maximum(differs, (logprobs.detach() - batch.logprobs).abs().max())
        torch.nn.utils.clip_grad_norm_(trainable(self.policy.network).values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(picked), differs.item()

    @torch.no_grad()
    def forward(self, rows: int) -> None:
        """One pass through the network as it was published, without adapters."""
        self.policy.network.disable_adapters()
        batched = {name: value.expand(rows, *value.shape) for name, value in self.conditioning.items()}
        states = torch.zeros(rows, *self.policy.latent_shape, device=self.device)
        self.policy.velocity(states, torch.full([rows], 0.5, device=self.device), batched)
        self.policy.network.enable_adapters()

    def iteration(self, schedule: Schedule, pruning: PruningSettings, rows: int) -> dict[str, float]:
        """Sample, score and learn from one group: seconds of all and of each, and what else is worth knowing."""
        rollout, (tree, pictures) = self.timed(lambda: self.rollout(schedule, rows))
        sampled = self._peak()
        scores, _ = self.timed(lambda: self.score(tree, pictures))
        self._peak()
        update, (trained, differs) = self.timed(lambda: self.update(tree, pruning, min(rows, 4)))
        return {
            "iteration": rollout + scores + update,
            "rollout": rollout,
            "scores": scores,
            "update": update,
            "rollout, GB at most": sampled,
            "update, GB at most": self._peak(),
            "rows trained": trained,
            "log-probabilities differ by": differs,
        }

    def timed(self, call: Callable[[], Result]) -> tuple[float, Result]:
        """Seconds, and what the call returns."""
        self._wait()
        start = time.perf_counter()
        result = call()
        self._wait()
        return time.perf_counter() - start, result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _peak(self) -> float:
        """GB of memory held at most since the last call."""
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


Part = Callable[[Bench], dict[str, float]]


def parts(steps: int, rows: int, times: int) -> dict[str, Part]:
    """What is measured, in this order, and how; of several times the fastest counts."""
    splits = {0: 2, 3: 2, 6: 2, 9: 2} if steps > 10 else {0: 2, 1: 2}
    tree = branch_grpo(steps=steps, splits=splits)
    mix = branch_grpo_mix(steps=steps, splits=splits, window=4)
    strides = branch_grpo_mix(steps=steps, splits=splits, window=4, ode_stride=STRIDE)
    sequential = dance_grpo(steps=steps, group=tree.leaves)

    def forward(size: int, bench: Bench) -> dict[str, float]:
        return {"forward": min(bench.timed(lambda: bench.forward(size))[0] for _ in range(times + 1))}

    def rollout(size: int, bench: Bench) -> dict[str, float]:
        return {"rollout": min(bench.timed(lambda: bench.rollout(tree, size))[0] for _ in range(times))}

    def iteration(schedule: Schedule, pruning: PruningSettings, size: int, bench: Bench) -> dict[str, float]:
        each = (bench.iteration(schedule, pruning, size) for _ in range(times))
        return min(each, key=lambda figures: figures["iteration"])

    whole = PruningSettings()
    return {
        **{f"batch of {size}": partial(forward, size) for size in sorted({1, 4, rows})},
        STRIDES: partial(iteration, strides, whole, rows),
        "sequential": partial(iteration, sequential, whole, rows),
        "tree": partial(iteration, tree, whole, rows),
        "mix": partial(iteration, mix, whole, rows),
        "tree, pruned": partial(iteration, tree, PRUNING, rows),
        "sequential, one row per pass": partial(iteration, sequential, whole, 1),
        "tree, one row per pass": partial(rollout, 1),
    }


def ratios(measured: Mapping[str, Mapping[str, float]], row_flops: float, rows: int, peak: float) -> dict[str, float]:
    """The claims that can be told by what is measured. On an H100, 1.5 for rollouts, 0.45 of the peak and 5 for
    iterations are to be reached."""
    reached: dict[str, float] = {}
    if forward := measured.get(f"batch of {rows}"):
        reached["forward: share of the peak"] = row_flops * rows / forward["forward"] / (peak * 1e12)
    branching = [measured[name]["iteration"] for name in BRANCHING if name in measured]
    for batching in ("", ", one row per pass"):
        sequential, tree = measured.get(f"sequential{batching}"), measured.get(f"tree{batching}")
        if sequential and tree:
            reached[f"rollout: sequential / tree{batching}"] = sequential["rollout"] / tree["rollout"]
        if sequential and branching:
            reached[f"iteration: sequential{batching} / best"] = sequential["iteration"] / min(branching)
    return reached


@contextmanager
def _bench(scale: Scale, device: torch.device, *, rows: int, compiled: bool) -> Iterator[Bench]:
    """A bench that is warmed up: kernels are chosen and compiled."""
    bench = Bench(scale, device, compiled=compiled)
    short = branch_grpo(steps=4, splits={0: 2, 1: 2})
    for size in (1, rows):
        bench.iteration(short, PruningSettings(), size)
    try:
        yield bench
    finally:
        del bench
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _earlier(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The report in the file if it has the same `facts`, otherwise a new report with these."""
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    return earlier if facts.items() <= earlier.items() else dict(facts)


def main(
    out: Out = OUT,
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network, on whatever device there is.")] = False,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    rows: Annotated[int, typer.Option(help="Maximum rows in a forward pass.")] = 16,
    times: Annotated[int, typer.Option(help="How often each is timed.")] = 2,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Measure with torch.compile too.")] = True,
    part: Annotated[list[str] | None, typer.Option(help="What to measure; may be repeated. Default: all.")] = None,
    peak: Annotated[float, typer.Option(help="The card's bfloat16 peak, TFLOP/s.")] = PEAK_TFLOPS,
) -> None:
    """Measure, and write gpu.json after each part. Parts that it already holds, with the same options, are skipped: a
    second call continues where the first was stopped.

    Example: python -m branchgrpo.benchmarks.speed.gpu --no-compile --times 1
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not tiny:
        raise typer.BadParameter("there is no GPU; --tiny runs anywhere", param_hint="--tiny")
    every = parts(steps, rows, times)
    if unknown := [name for name in part or () if name not in every]:
        raise typer.BadParameter(f"{unknown[0]} is none of: {'; '.join(every)}", param_hint="--part")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    scale, path = TINY_SCALE if tiny else FULL_SCALE, report_path(out, "gpu")
    found = _earlier(path, {"device": name, "tiny": tiny, "steps": steps, "rows": rows, "times": times})
    shapes = Bench(scale, torch.device("meta"), compiled=False)
    row_flops = count_flops(lambda: shapes.forward(1))
    ways = ["eager", "compiled"] if compiled else ["eager"]
    with Progress(transient=True) as progress:
        for way in ways:
            measured = found.setdefault(way, {}).setdefault("seconds", {})
            left = {name: every[name] for name in part or every if name not in measured}
            if left:
                with _bench(scale, device, rows=rows, compiled=way == "compiled") as bench:
                    for each in progress.track(left, description=way):
                        measured[each] = left[each](bench)
                        write_report(path, found)
                    del bench  # else it would lie beside the next one
            found[way]["ratios"] = ratios(measured, row_flops, rows, peak)
            write_report(path, found)
    table = Table("", "", *ways, title=name)
    for each in every:
        seconds = [found[way]["seconds"].get(each, {}) for way in ways]
        for figure in dict.fromkeys(figure for own in seconds for figure in own):
            table.add_row(each, figure, *(f"{own[figure]:.4g}" if figure in own else "" for own in seconds))
        table.add_section()
    reached = [found[way]["ratios"] for way in ways]
    for ratio in dict.fromkeys(ratio for own in reached for ratio in own):
        table.add_row(ratio, "", *(f"{own[ratio]:.2f}" if ratio in own else "" for own in reached))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
