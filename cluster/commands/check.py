"""What a recipe needs before it is run: passes, edges and rows, parameters and memory, missing files."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...proto.errors import InputError, RunFailed
from ...proto.settings import RunSettings
from ...proto.user_code import TRACEBACK
from ...reward_service.scorers import check_source
from ...rollout_workers.kernels import grid_levels
from ...rollout_workers.policies.base import Policy, Weights, cut_prompts, trainable, with_guidance
from ...rollout_workers.policies.folder import Part, read_headers, weight_files
from ...rollout_workers.policies.load import find_adapter, find_policy, load_policy
from ...rollout_workers.policies.pipeline import PipelinePolicy
from ...rollout_workers.policies.weights import find_problems
from ..on_ray.placement import demands
from ..plan.rows import trained_edges
from ..run.advice import advice
from ..run.new_folder import check_place
from ..run.preflight import check_packages, check_recipe
from ..run.prompt_order import cut_warning, training_and_held_out
from ..run.start_point import find_start

BYTES = {"float32": 4, "bfloat16": 2}
MASTER_AND_MOMENTS = 12
"""Bytes for each trained parameter: AdamW's two moments, and with bfloat16 the float32 weights, of which float32 has no
second copy."""


@dataclass(frozen=True)
class Memory:
    """Bytes of weights, gradients and optimizer states of one process, without activations."""

    device: float
    encoders: float
    """Bytes of text encoders, which are on the device while prompts are encoded, and otherwise in the host's memory."""
    host: float


@dataclass
class CheckReport:
    """Everything that `check` has found out about a recipe."""

    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Count -> its values for a tree and for an iteration."""
    guided: bool = False
    """Whether every state goes through the network twice."""
    parameters: dict[str, int] = field(default_factory=dict)
    """All of the network's, and those that are trained; nothing if the network isn't known."""
    memory: dict[str, Memory] = field(default_factory=dict)
    """Process -> its memory."""
    gpus: dict[str, float] = field(default_factory=dict)
    """Pool -> the GPUs that it needs, for a run on Ray."""
    prompts: dict[str, int] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    """Settings that don't do what they seem to."""
    missing: list[str] = field(default_factory=list)


def check(settings: RunSettings) -> CheckReport:
    """Look at everything but the weights themselves. Raises InputError for settings that can't be used."""
    check_recipe(settings)
    found = CheckReport(counts=_counts(settings), advice=advice(settings))
    if settings.execution == "ray":
        found.gpus = {need.pool: need.count * need.each.get("GPU", 0) for need in demands(settings)}
    sources = (partial(check_source, name, reward) for name, reward in settings.rewards.items())
    for look in (*sources, partial(check_place, settings), partial(check_packages, settings)):
        try:
            look()
        except InputError as error:
            found.missing.append(str(error))
    prompts: list[str] = []
    try:
        train, held_out = training_and_held_out(settings)
        found.prompts = {"to train on": len(train), "held out": len(held_out)}
        prompts = [*train, *held_out]
    except InputError as error:
        found.missing.append(str(error))
    try:
        settings = find_start(settings)
        folder, adapter = find_policy(settings.policy)
        family = find_adapter(adapter)
        if isinstance(family, type) and issubclass(family, PipelinePolicy):
            parts = family.find_parts(folder, settings.policy.variant)
            if problems := find_problems(parts.values()):
                raise InputError("\n".join(problems))
            policy = _without_weights(settings)
            schedule = settings.schedule.build(1, settings.seed)
            grid_levels(schedule, policy.sigmas(schedule.grid_steps))
            found.guided = getattr(policy, "guided", False)
            found.advice += _of_guidance(settings, policy)
            if cut := cut_prompts(policy, prompts):
                found.advice.append(cut_warning(cut, settings.policy.max_sequence_length))
            trained = sum(weight.numel() for weight in trainable(policy.network).values())
            found.parameters = {"all": sum(p.numel() for p in policy.network.parameters()), "trained": trained}
            found.memory = dict(_memory(settings, parts.values(), family, found.parameters))
    except (InputError, RunFailed) as error:
        lines = str(error).splitlines()  # one for each fault, unless a traceback comes behind the first
        found.missing += [str(error)] if lines[1:2] == [TRACEBACK] else lines
    return found


def show(found: CheckReport, settings: RunSettings, console: Console) -> None:
    """Print the counts as tables, and what is missing as a list."""
    table = Table("", title=Text(f"{settings.name}: {settings.schedule.method}"), title_justify="left")
    for column in ("a tree", "an iteration"):
        table.add_column(column, justify="right")
    for name, (tree, iteration) in found.counts.items():
        table.add_row(name, f"{tree:,}", f"{iteration:,}")
    console.print(table)
    if found.guided:
        console.print("Classifier-free guidance takes every state through the network twice.")
    if found.parameters:
        table = Table("process", title="GB of weights, gradients, optimizer states", title_justify="left")
        for column in ("device", "while prompts are encoded", "host"):
            table.add_column(column, justify="right")
        for process, size in found.memory.items():
            numbers = (size.device, size.device + size.encoders, size.host + size.encoders)
            table.add_row(process, *(f"{number / 1e9:.2f}" for number in numbers))
        console.print(table)
        console.print("Activations come on top, and reward models where they share a device.")
        everything, trained = (f"{found.parameters[kind] / 1e6:,.2f} million" for kind in ("all", "trained"))
        console.print(f"{everything} parameters, of which {trained} are trained")
    if any(found.gpus.values()):
        pools = " + ".join(f"{count:g} {pool.removeprefix('pools.')}" for pool, count in found.gpus.items() if count)
        console.print(f"{sum(found.gpus.values()):g} GPUs: {pools}")
    if found.prompts:
        console.print(", ".join(f"{count:,} prompts {kind}" for kind, count in found.prompts.items()))
    for line in found.advice:
        console.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True, highlight=False)
    for problem in found.missing:
        console.print("missing: ", style="red", end="")
        console.print(problem, markup=False, soft_wrap=True, highlight=False)


def _counts(settings: RunSettings) -> dict[str, tuple[float, float]]:
    schedule, trees = settings.schedule.build(1, settings.seed), settings.prompts.per_iteration
    own = {
        "leaves": schedule.leaves,
        "forward passes of the rollout": schedule.forward_passes,
        "edges": schedule.nodes - schedule.roots,
    }
    if settings.learner.objective == "nft":
        rows = schedule.leaves * settings.learner.nft.noise_levels
        own |= {"rows of the learner": rows, "rows of the old policy": rows}
    else:
        own |= {"trained edges": schedule.trained_edges, "rows of the learner": schedule.rows}
    if settings.pruning.width or settings.pruning.depth:
        kept = trained_edges(settings, schedule)
        own["edges that pruning keeps"] = int(kept.sum())
        own["rows of the learner that it keeps"] = len(np.unique(schedule.parent[kept]))
    if settings.learner.kl_weight:
        own["rows of the KL term's reference"] = [*own.values()][-1]
    return {name: (count, count * trees) for name, count in own.items()}


def _of_guidance(settings: RunSettings, policy: Policy) -> Iterator[str]:
    """A warning if neither rollouts nor evaluations are guided away from the negative prompt."""
    scale = settings.evaluation.guidance_scale
    both = [policy] if scale is None else [policy, with_guidance(policy, scale)]
    if settings.policy.negative_prompt and not any(getattr(one, "guided", False) for one in both):
        yield (
            f"policy.negative_prompt has no effect: policy.guidance_scale is {settings.policy.guidance_scale:g}, which "
            "is no guidance for this model"
        )


def _without_weights(settings: RunSettings) -> Policy:
    """The policy as the learner has it, with shapes in place of numbers. Raises InputError as it would."""

    def shapes(make: Callable[[], torch.nn.Module], weights: Weights) -> torch.nn.Module:
        with torch.device("meta"):
            return make()

    here = settings.policy.model_copy(update={"device": "cpu"})
    policy = load_policy(here, network_only=True, build=shapes)
    if settings.learner.lora:
        with torch.device("meta"):
            policy.add_lora(settings.learner.lora)
    return policy


def _memory(
    settings: RunSettings, parts: Collection[Part], family: type[PipelinePolicy], parameters: dict[str, int]
) -> Iterator[tuple[str, Memory]]:
    learner, size = settings.learner, BYTES[settings.policy.precision]
    ranks = settings.pools.learner.count if settings.execution == "ray" else 1
    weights, trained = parameters["all"] * size, parameters["trained"]
    around, encoders = (
        sum(
            _numbers(part) * (BYTES["float32"] if part.name in family.float32_parts else size)
            for part in parts
            if part.name.startswith(kind)
        )
        for kind in ("vae", "text_encoder")
    )
    stage, offload = learner.zero_stage, learner.offload
    share = weights / (ranks if stage == 3 else 1)
    gradients = trained * 4 / (ranks if stage >= 2 else 1)
    states = trained * MASTER_AND_MOMENTS / (ranks if stage >= 1 else 1)
    if settings.policy.precision == "float32":
        states *= 2 / 3
    start = settings.policy.start_from
    second = not learner.lora or (start is not None and start.lora == "train")
    reference = share if learner.kl_weight and second else 0
    average = trained * 4 if learner.ema_decay is not None else 0  # of rank 0 alone
    on_host = (share + reference) * offload.parameters + states * offload.optimizer
    learning = share + reference + gradients + states - on_host
    if settings.execution == "in_process" or settings.placement == "colocated":
        yield f"{ranks} x samples and learns", Memory(learning + around, encoders, on_host + average)
    else:
        yield f"{settings.pools.rollout_workers.count} x rollout worker", Memory(weights + around, encoders, 0)
        yield f"{ranks} x learner rank", Memory(learning, 0, on_host + average)


def _numbers(part: Part) -> int:
    """Parameters of an autoencoder or a text encoder."""
    return sum(math.prod(tensor.shape) for tensor in read_headers(weight_files(part)).values())
