"""What a recipe needs before it is run: passes, edges and rows, parameters and memory, missing files."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...proto.errors import InputError, RunFailed
from ...proto.settings import RunSettings
from ...proto.settings_errors import named_settings
from ...proto.user_code import TRACEBACK
from ...reward_service.scorers import check_source
from ...rollout_workers.kernels import grid_levels
from ...rollout_workers.policies.base import Policy, cut_prompts, trainable, with_guidance
from ...rollout_workers.policies.load import find_adapter, find_policy
from ...rollout_workers.policies.pipeline import PipelinePolicy
from ...rollout_workers.policies.weights import find_problems
from ..on_ray.placement import demands
from ..plan.device import calibrated, device_here
from ..plan.fit import Changes, remedies
from ..plan.gpus import Gpu
from ..plan.memory import Memory, count_memory
from ..plan.memory_tables import memory_table, on_gpus, remedy_line, rows_table
from ..plan.rows import trained_edges
from ..plan.shapes import policy_shapes
from ..plan.sizes import choose_sizes
from ..run.advice import advice
from ..run.new_folder import check_place
from ..run.own_modules import rewards_elsewhere
from ..run.preflight import check_media, check_packages, check_recipe
from ..run.prompt_order import cut_warning, training_and_held_out
from ..run.start_point import find_start


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
    changes: Changes | None = field(default_factory=dict)
    """Setting -> its value with which the run fits the GPU that was named, if it doesn't as it is; None if nothing
    helps."""
    gpus: dict[str, float] = field(default_factory=dict)
    """Pool -> the GPUs that it needs, for a run on Ray."""
    prompts: dict[str, int] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    """Settings that don't do what they seem to."""
    missing: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """Setting that is `auto` -> the number that is chosen for it."""


def check(settings: RunSettings, gpu: Gpu | None = None) -> CheckReport:
    """Look at everything but the weights themselves, and at what fits a GPU if one is given.

    Raises InputError for settings that can't be used.
    """
    check_recipe(settings)
    found = CheckReport(counts=counted(settings), advice=advice(settings))
    if settings.execution == "ray":
        found.gpus = {need.pool: need.count * need.each.get("GPU", 0) for need in demands(settings)}
    elsewhere = rewards_elsewhere(settings)
    sources = (partial(check_source, name, own) for name, own in settings.rewards.items() if name not in elsewhere)
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
    problems: list[str] = []
    try:
        settings = find_start(settings)
        folder, adapter = find_policy(settings.policy)
        check_media(settings)
        family = find_adapter(adapter)
        if isinstance(family, type) and issubclass(family, PipelinePolicy):
            problems = find_problems(family.find_parts(folder, settings.policy.variant).values())
            found.missing += problems
            _look_at(policy_shapes(settings), _sized(settings, gpu, found), prompts, gpu, found)
    except (InputError, RunFailed) as error:
        lines = str(error).splitlines()  # one for each fault, unless a traceback comes behind the first
        if not problems:  # from which it would follow
            found.missing += [str(error)] if lines[1:2] == [TRACEBACK] else lines
    return found


def _sized(settings: RunSettings, gpu: Gpu | None, found: CheckReport) -> RunSettings:
    """The settings with numbers for the GPU, or for this machine's device; a warning if that has none for them."""
    try:
        device = calibrated(gpu) if gpu else device_here(settings)
        chosen = choose_sizes(settings, device)
    except InputError as error:
        found.advice.append(str(error))
        return settings
    found.sizes = named_settings(chosen, settings.automatic)
    return chosen


def _look_at(policy: Any, settings: RunSettings, prompts: Collection[str], gpu: Gpu | None, found: CheckReport) -> None:
    """Note what follows from a policy's shapes. Raises InputError for what it can't be used with."""
    schedule = settings.schedule.build(1, settings.seed)
    grid_levels(schedule, policy.sigmas(schedule.grid_steps))
    found.guided = policy.guided
    found.advice += _of_guidance(settings, policy)
    if cut := cut_prompts(policy, [*prompts]):
        found.advice.append(cut_warning(cut, settings.policy.max_sequence_length))
    trained = sum(weight.numel() for weight in trainable(policy.network).values())
    found.parameters = {"all": sum(p.numel() for p in policy.network.parameters()), "trained": trained}
    try:
        found.memory = count_memory(settings, policy)
        found.changes = remedies(settings, gpu.memory) if gpu else {}
    except InputError as error:
        found.advice.append(str(error))


def show(found: CheckReport, settings: RunSettings, console: Console, gpu: Gpu | None = None) -> None:
    """Print the counts as tables, and what is missing as a list."""
    table = Table("", title=Text(f"{settings.name}: {settings.schedule.method}"), title_justify="left")
    for column in ("a tree", "an iteration"):
        table.add_column(column, justify="right")
    for name, (tree, iteration) in found.counts.items():
        table.add_row(name, f"{tree:,.12g}", f"{iteration:,.12g}")
    console.print(table)
    if found.guided:
        console.print("Classifier-free guidance takes every state through the network twice.")
    if found.sizes:
        console.print("auto: " + " ".join(f"{name}={number}" for name, number in found.sizes.items()), highlight=False)
    if found.memory:
        size = gpu.memory if gpu else None
        console.print(memory_table(found.memory, size))
        console.print(rows_table(found.memory, size))
    if gpu and found.memory and not on_gpus(found.memory):
        console.print(f"No process reserves a GPU: nothing to compare with {gpu.name}", style="yellow", highlight=False)
    if gpu and found.changes != {}:
        console.print(remedy_line(settings, found.changes, gpu), style="yellow", markup=False, soft_wrap=True)
    if found.parameters:
        everything, trained = (f"{found.parameters[kind] / 1e6:,.2f} million" for kind in ("all", "trained"))
        console.print(f"{everything} parameters, of which {trained} are trained")
    if any(found.gpus.values()):
        pools = " + ".join(f"{count:g} {pool.removeprefix('pools.')}" for pool, count in found.gpus.items() if count)
        total = sum(found.gpus.values())
        console.print(f"{total:g} GPU{'s' * (total != 1)}: {pools}")
    if found.prompts:
        console.print(", ".join(f"{count:,} prompts {kind}" for kind, count in found.prompts.items()))
    for line in found.advice:
        console.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True, highlight=False)
    for problem in found.missing:
        console.print("missing: ", style="red", end="")
        console.print(problem, markup=False, soft_wrap=True, highlight=False)


def counted(settings: RunSettings) -> dict[str, tuple[float, float]]:
    """Counts of a tree and of an iteration; rows are those of all `learner.passes`."""
    schedule, trees, passes = (
        settings.schedule.build(1, settings.seed),
        settings.prompts.per_iteration,
        settings.learner.passes,
    )
    own: dict[str, float] = {
        "leaves": schedule.leaves,
        "forward passes of the rollout": schedule.forward_passes,
        "edges": schedule.nodes - schedule.roots,
    }
    if settings.learner.learns_from_leaves:
        rows = passes * schedule.leaves * settings.learner.nft.noise_levels
        own["rows of the learner"] = rows
        if settings.learner.has_old_policy:
            own["rows of the old policy"] = settings.learner.old_policy_share * rows
    else:
        own |= {"trained edges": schedule.trained_edges, "rows of the learner": passes * schedule.rows}
    if settings.pruning.width or settings.pruning.depth:
        kept = trained_edges(settings, schedule)
        own["edges that pruning keeps"] = int(kept.sum())
        own["rows of the learner that it keeps"] = passes * len(np.unique(schedule.parent[kept]))
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
