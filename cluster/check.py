"""What a recipe needs, before it is run: passes, edges and rows, parameters and memory, files that are missing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table

from ..proto.errors import InputError
from ..proto.recipe import imported
from ..proto.settings import RunSettings
from ..rollout_workers.policies.load import find_policy
from ..rollout_workers.policies.pipeline import PipelinePolicy
from .branching import Branching
from .prompts import training_and_held_out
from .train import check_rewards

BYTES = {"float32": 4, "bfloat16": 2}
MASTER_AND_MOMENTS = 12
"""Bytes for each trained parameter: AdamW's two moments, and with bfloat16 the float32 weights, of which float32 has no
second copy."""


@dataclass
class Checked:
    """What was found out."""

    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What is counted -> for a tree, for an iteration."""
    parameters: dict[str, int] = field(default_factory=dict)
    """All of the network's, and those that are trained; nothing if the network isn't known."""
    memory: dict[str, float] = field(default_factory=dict)
    """Process -> bytes of weights, gradients and optimizer states, without activations."""
    prompts: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def check(settings: RunSettings) -> Checked:
    """Look at everything but the weights themselves. Raises InputError for settings that can't be used."""
    check_rewards(settings)
    found = Checked(counts=_counts(settings), missing=list(_missing_rewards(settings)))
    Branching(settings)
    try:
        train, held_out = training_and_held_out(settings)
        found.prompts = {"to train on": len(train), "held out": len(held_out)}
    except InputError as error:
        found.missing.append(str(error))
    try:
        folder, adapter = find_policy(settings.policy)
    except InputError as error:
        found.missing.append(str(error))
        return found
    found.missing += _missing_parts(folder)
    policy = imported(adapter, "policy.adapter")
    if isinstance(policy, type) and issubclass(policy, PipelinePolicy):
        try:
            found.parameters = _parameters(folder, policy, settings)
            found.memory = dict(_memory(settings, folder, found.parameters))
        except OSError as error:
            found.missing.append(f"the network's configuration can't be read: {error}")
    return found


def show(found: Checked, settings: RunSettings, console: Console) -> None:
    """As tables, and what is missing as a list."""
    table = Table(title=f"{settings.name}: {settings.schedule.method}", title_justify="left")
    for column in ("", "a tree", "an iteration"):
        table.add_column(column, justify="right" if column else "left")
    for name, (tree, iteration) in found.counts.items():
        table.add_row(name, f"{tree:,}", f"{iteration:,}")
    console.print(table)
    if found.parameters:
        table = Table(title="Weights, gradients and optimizer states, without activations", title_justify="left")
        table.add_column("process")
        table.add_column("GB", justify="right")
        for process, size in found.memory.items():
            table.add_row(process, f"{size / 1e9:.2f}")
        console.print(table)
        everything, trained = (f"{found.parameters[kind] / 1e6:,.2f} million" for kind in ("all", "trained"))
        console.print(f"{everything} parameters, of which {trained} are trained")
    if found.prompts:
        console.print(", ".join(f"{count:,} prompts {kind}" for kind, count in found.prompts.items()))
    for problem in found.missing:
        console.print("missing: ", style="red", end="")
        console.print(problem, markup=False, soft_wrap=True, highlight=False)


def _counts(settings: RunSettings) -> dict[str, tuple[float, float]]:
    schedule, trees = settings.schedule.build(1, settings.seed), settings.prompts.per_iteration
    own = {
        "leaves": schedule.leaves,
        "forward passes of the rollout": schedule.forward_passes,
        "edges": schedule.nodes - schedule.roots,
        "trained edges": schedule.trained_edges,
        "rows of the learner": schedule.rows,
    }
    return {name: (count, count * trees) for name, count in own.items()}


def _missing_parts(folder: Path) -> Iterator[str]:
    """Parts of a pipeline that its index names and the folder lacks."""
    index = json.loads((folder / "model_index.json").read_text())
    for name, value in index.items():
        if not isinstance(value, list) or not value[0]:
            continue
        part = folder / name
        if not part.is_dir():
            yield f"{part}, a {value[1]}"
        elif name.startswith(("transformer", "unet", "vae", "text_encoder")):
            listed = {file for place in part.glob("*.safetensors.index.json") for file in _shards(place)}
            if absent := sorted(file for file in listed if not (part / file).is_file()):
                yield f"{part / absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
            if not listed and not any(part.glob("*.safetensors")):
                yield f"{part}/*.safetensors, the weights of a {value[1]}"


def _shards(index: Path) -> set[str]:
    return set(json.loads(index.read_text())["weight_map"].values())


def _missing_rewards(settings: RunSettings) -> Iterator[str]:
    for name, reward in settings.rewards.items():
        for key in ("pretrained", "tokenizer", "backbone"):
            path = getattr(reward, key)
            if path is not None and not Path(path).exists():
                yield f"rewards.{name}.{key} is '{path}'; no such file or folder"


def _parameters(folder: Path, policy: type[PipelinePolicy], settings: RunSettings) -> dict[str, int]:
    """Counted on shapes without numbers."""
    index = json.loads((folder / "model_index.json").read_text())
    count = {"all": 0, "trained": 0}
    for name in policy.networks:
        if not (index.get(name) or [None])[0]:
            continue
        network_class: Any = getattr(diffusers, index[name][1])
        with torch.device("meta"):
            network = network_class.from_config(network_class.load_config(folder / name, local_files_only=True))
            count["all"] += sum(p.numel() for p in network.parameters())
            if lora := settings.learner.lora:
                network.requires_grad_(False)
                modules = lora.target_modules or list(policy.lora_modules)
                network.add_adapter(LoraConfig(r=lora.rank, target_modules=modules))
        count["trained"] += sum(p.numel() for p in network.parameters() if p.requires_grad)
    return count


def _memory(settings: RunSettings, folder: Path, parameters: dict[str, int]) -> Iterator[tuple[str, float]]:
    learner, size = settings.learner, BYTES[settings.policy.precision]
    ranks = settings.pools.learner.count if settings.execution == "ray" else 1
    weights, trained = parameters["all"] * size, parameters["trained"]
    around = sum(file.stat().st_size for file in (folder / "vae").glob("*.safetensors"))
    stage, offload = learner.zero_stage, learner.offload
    kept = 0 if offload.parameters else weights / (ranks if stage == 3 else 1)
    gradients = trained * 4 / (ranks if stage >= 2 else 1)
    states = 0 if offload.optimizer else trained * MASTER_AND_MOMENTS / (ranks if stage >= 1 else 1)
    if settings.policy.precision == "float32":
        states *= 2 / 3
    reference = weights if learner.kl_weight and not learner.lora else 0
    learning = kept + gradients + states + reference
    if settings.execution == "plain" or settings.placement == "colocated":
        yield f"{ranks} x samples and learns", learning + around
    else:
        yield f"{settings.pools.rollout_workers.count} x rollout worker", weights + around
        yield f"{ranks} x learner rank", learning
