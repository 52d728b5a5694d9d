"""FLUX.1-dev's architecture at full size on one GPU, with random weights: what branching saves there.

A tree against 16 sequential trajectories, batched and one row per forward pass; the share of the card's peak that a
forward pass reaches; peak memory; LoRA updates in full, pruned and mix, compiled or not; and whole iterations in which
one process samples, scores (a ViT-H/14) and learns in turns. Nothing but torch, diffusers, peft, transformers and the
pure parts of this package: neither Ray nor DeepSpeed.

    python -m branchgrpo.benchmarks.gpu --out build/bench
    python -m branchgrpo.benchmarks.gpu --tiny   (a small network on any device, to see that all of it runs)
"""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import CLIPVisionConfig, CLIPVisionModel

from ..learner.credit import tree_credit
from ..learner.objective import clipped_objective, means_logprobs, predicted_means
from ..learner.rows import micro_batches, pick_rows
from ..proto.files import write_text
from ..proto.methods import branch_grpo, branch_grpo_mix, dance_grpo
from ..proto.schedule import Schedule
from ..proto.settings import (
    AdvantageSettings,
    DepthPruningSettings,
    LoraSettings,
    PolicySettings,
    PruningSettings,
    RolloutSettings,
    WidthPruningSettings,
)
from ..proto.tree import Conditioning, Task, Tree
from ..reward_service.images import cropped, prepared
from ..rollout_workers.expansion import expand
from ..rollout_workers.kernels import Transitions, relative_noise
from ..rollout_workers.policies.base import trainable
from ..rollout_workers.policies.flux import FluxPolicy
from ..rollout_workers.policies.pipeline import compile_network
from .flux_dev import POOLED_CHANNELS, TEXT_CHANNELS, TEXT_TOKENS, VAE_BLOCKS, VIT_H, flops

PEAK_TFLOPS = 800.0
"""Of an H100 in bfloat16, about."""
ITERATION = 1
PRUNING = PruningSettings(
    width=WidthPruningSettings(mode="parent_top1"), depth=DepthPruningSettings(mode="sliding", window=4)
)


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    network: dict[str, Any]
    vae_blocks: list[int]
    pixels: int
    text: tuple[int, int, int]
    """Tokens, channels, pooled channels."""
    tower: CLIPVisionConfig


FULL = Scale({}, VAE_BLOCKS, 720, (TEXT_TOKENS, TEXT_CHANNELS, POOLED_CHANNELS), VIT_H)
TINY = Scale(
    {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (2, 2, 4),
    },
    [8, 8],
    32,
    (4, 16, 8),
    CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    ),
)


class RandomFlux(FluxPolicy):
    """FLUX.1-dev with random weights and made-up prompts."""

    def __init__(self, scale: Scale, device: torch.device, *, compiled: bool) -> None:
        self.device, self.precision, self._text = device, torch.bfloat16, scale.text
        self.settings = PolicySettings(pretrained="random", height=scale.pixels, width=scale.pixels)
        with torch.device(device):
            self.network = FluxTransformer2DModel(**{"guidance_embeds": True, **scale.network}).to(torch.bfloat16)
            latents = self.network.config.in_channels // 4
            vae = AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * len(scale.vae_blocks),
                up_block_types=["UpDecoderBlock2D"] * len(scale.vae_blocks),
                block_out_channels=scale.vae_blocks,
                layers_per_block=2,
                latent_channels=latents,
                norm_num_groups=4 if scale is TINY else 32,
                use_quant_conv=False,
                use_post_quant_conv=False,
                scaling_factor=0.3611,
                shift_factor=0.1159,
            ).to(torch.bfloat16)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        parts = {"transformer": self.network, "vae": vae.requires_grad_(False), "scheduler": scheduler}
        self.pipeline: Any = SimpleNamespace(components=parts, **parts)
        self.autoencoder = {"block_out_channels": scale.vae_blocks}
        if compiled:
            compile_network(self.network)

    def encode(self, prompt: str) -> Conditioning:
        tokens, channels, pooled = self._text
        make = {"device": self.device, "dtype": self.precision}
        return {
            "prompt_embeds": torch.randn(tokens, channels, **make),
            "pooled_prompt_embeds": torch.randn(pooled, **make),
        }


class Bench:
    """One network on one device, and what can be timed with it."""

    def __init__(self, scale: Scale, device: torch.device, *, steps: int, compiled: bool) -> None:
        torch.manual_seed(0)
        self.scale, self.device, self.steps = scale, device, steps
        self.policy = RandomFlux(scale, device, compiled=compiled)
        self.tower = CLIPVisionModel(scale.tower).to(device, torch.bfloat16).requires_grad_(False).eval()
        self.conditioning = self.policy.encode("a prompt")
        self._numbers = iter(range(10**9))

    def add_lora(self, checkpointed: bool) -> None:
        self.policy.add_lora(LoraSettings())
        for name, parameter in trainable(self.policy.network).items():
            if "lora_B" in name:  # which begin at zero: nothing would be known of the others' gradients
                torch.nn.init.normal_(parameter, std=1e-3)
        if checkpointed:
            self.policy.checkpoint_gradients()
        self.optimizer = torch.optim.AdamW(trainable(self.policy.network).values(), lr=1e-5)

    def rollout(self, schedule: Schedule, rows: int) -> tuple[Tree, np.ndarray]:
        """A whole tree or group, and its pictures in the order of the leaves."""
        number = next(self._numbers)
        task = Task(ITERATION, (number,), ("a prompt",), schedule, seed=0)
        settings = RolloutSettings(batch_limit=rows, decode_batch=min(rows, 4))
        tree, pictures = Tree(number, "a prompt", schedule), []
        for part in expand(self.policy, task, [self.conditioning], settings):
            tree.add(part)
            pictures.append(part.media)
        return tree, np.concatenate(pictures)

    @torch.no_grad()
    def score(self, tree: Tree, pictures: np.ndarray) -> None:
        """Through the tower; scores are made up, for random weights tell nothing apart."""
        pixels = prepared(pictures, self.scale.tower.image_size, cropped, self.device).to(torch.bfloat16)
        self.tower(pixel_values=pixels)
        leaves = np.arange(tree.schedule.first_node[-2], tree.schedule.nodes)
        tree.add_scores(leaves, {"made up": np.random.default_rng(tree.number).random(len(leaves))})

    def update(self, tree: Tree, pruning: PruningSettings, rows: int) -> int:
        """An optimizer step from one tree; returns the rows that were computed."""
        schedule = tree.schedule
        sigmas = self.policy.sigmas(schedule.grid_steps)
        transitions = Transitions.of(schedule, sigmas)
        advantage = AdvantageSettings(normaliser="group" if schedule.roots > 1 else "depth")
        credit = tree_credit(tree, {"made up": 1.0}, advantage, pruning, ITERATION, relative_noise(schedule, sigmas))
        picked = pick_rows([tree], [credit])
        for batch in micro_batches(picked, [tree], [credit], rows=rows):
            batch = batch.to(self.device)
            means = predicted_means(self.policy.velocity, transitions, batch)
            logprobs = means_logprobs(transitions, batch, means)
            clipped_objective(logprobs, batch.logprobs, batch.advantages, batch.weights, 1e-4).loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable(self.policy.network).values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(picked)

    def forward_flops(self) -> float:
        """Of one row."""
        return flops(lambda: self.forward(1))

    @torch.no_grad()
    def forward(self, rows: int) -> None:
        batched = {name: value.expand(rows, *value.shape) for name, value in self.conditioning.items()}
        states = torch.zeros(rows, *self.policy.latent_shape, device=self.device)
        self.policy.velocity(states, torch.full([rows], 0.5, device=self.device), batched)

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """The least of several calls, after one that isn't counted."""
        call()
        taken = []
        for _ in range(times):
            self._wait()
            start = time.perf_counter()
            call()
            self._wait()
            taken.append(time.perf_counter() - start)
        return min(taken)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(scale: Scale, device: torch.device, *, steps: int, rows: int, times: int, compiled: bool) -> dict[str, Any]:
    """Everything for one way of running the network; seconds, and GB of memory at most."""
    tree = branch_grpo(steps=steps, splits=_splits(steps))
    mix = branch_grpo_mix(steps=steps, splits=_splits(steps), window=4)
    sequential = dance_grpo(steps=steps, group=tree.leaves)
    found: dict[str, Any] = {}
    with _bench(scale, device, steps=steps, compiled=compiled) as bench:
        flops_of_a_row = bench.forward_flops() if not compiled else 0.0
        for size in sorted({1, 4, rows}):
            seconds = bench.seconds(partial(bench.forward, size), times)
            found[f"forward, {size} rows"] = seconds
            if flops_of_a_row:
                found[f"forward, {size} rows: TFLOP/s"] = flops_of_a_row * size / seconds / 1e12
        for name, schedule in {"tree": tree, "mix": mix, "sequential": sequential}.items():
            for limit in (rows, 1):
                if limit == 1 and name == "mix":
                    continue
                label = f"rollout, {name}, {'batched' if limit > 1 else 'one row per pass'}"
                found[label] = bench.seconds(partial(bench.rollout, schedule, limit), times)
        found["rollout: GB"] = _peak(device)
        bench.add_lora(checkpointed=True)
        for name, schedule, pruning in (
            ("tree", tree, PruningSettings()),
            ("tree, pruned", tree, PRUNING),
            ("mix", mix, PruningSettings()),
            ("sequential", sequential, PruningSettings()),
        ):
            batch = 1 if name == "sequential" else rows

            def whole(schedule: Schedule = schedule, pruning: PruningSettings = pruning, batch: int = batch) -> None:
                sampled, pictures = bench.rollout(schedule, batch)
                bench.score(sampled, pictures)
                bench.update(sampled, pruning, min(batch, 4))

            sampled, pictures = bench.rollout(schedule, rows)
            bench.score(sampled, pictures)
            update = partial(bench.update, sampled, pruning, min(batch, 4))
            found[f"update, {name}"] = bench.seconds(update, times)
            found[f"iteration, {name}" + (", one row per pass" if batch == 1 else "")] = bench.seconds(whole, times)
        found["update: GB"] = _peak(device)
    return found


def ratios(found: dict[str, Any], peak: float, rows: int) -> dict[str, float]:
    """What is to be reached: 1.5, 0.45 and 5 on an H100."""
    best = min(found["iteration, tree"], found["iteration, tree, pruned"], found["iteration, mix"])
    reached = {
        "rollout: sequential / tree, batched": found["rollout, sequential, batched"] / found["rollout, tree, batched"],
        "iteration: sequential, one row per pass / best": found["iteration, sequential, one row per pass"] / best,
    }
    if (speed := found.get(f"forward, {rows} rows: TFLOP/s")) is not None:
        reached["forward: share of the peak"] = speed / peak
    return reached


@contextmanager
def _bench(*arguments: Any, **options: Any) -> Iterator[Bench]:
    bench = Bench(*arguments, **options)
    try:
        yield bench
    finally:
        del bench
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _splits(steps: int) -> dict[int, int]:
    return {0: 2, 3: 2, 6: 2, 9: 2} if steps > 10 else {0: 2, 1: 2}


def _peak(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def main(
    out: Annotated[Path, typer.Option(help="Folder for gpu.json.")] = Path("build/bench"),
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network, on whatever device there is.")] = False,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    rows: Annotated[int, typer.Option(help="Most rows in a forward pass.")] = 16,
    times: Annotated[int, typer.Option(help="How often each is timed.")] = 2,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Measure with torch.compile too.")] = True,
    peak: Annotated[float, typer.Option(help="The card's bfloat16 peak, TFLOP/s.")] = PEAK_TFLOPS,
) -> None:
    """Measure, and write gpu.json after each part.

    Example: python -m branchgrpo.benchmarks.gpu --no-compile --times 1
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not tiny:
        raise typer.BadParameter("there is no GPU; --tiny runs anywhere", param_hint="--tiny")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    scale, found = TINY if tiny else FULL, {}
    with Progress(transient=True) as progress:
        ways = [False, True] if compiled else [False]
        for way in progress.track(ways, description="measuring"):
            label = "compiled" if way else "eager"
            measured = measure(scale, device, steps=steps, rows=rows, times=times, compiled=way)
            found[label] = {"measured": measured, "ratios": ratios(measured, peak, rows)}
            write_text(out / "gpu.json", json.dumps({"device": name, "steps": steps, **found}, indent=1) + "\n")
    table = Table("", *found, title=f"{name}: seconds")
    for key in found["eager"]["measured"]:
        table.add_row(key, *(f"{one['measured'][key]:.3f}" if key in one["measured"] else "" for one in found.values()))
    for key in found["eager"]["ratios"]:
        table.add_row(key, *(f"{one['ratios'][key]:.2f}" if key in one["ratios"] else "" for one in found.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
