"""Warnings about settings that have no or little effect beside the others, but are no reason to refuse a recipe."""

import inspect
from collections.abc import Iterator, Mapping

import numpy as np

from ...learner.pruning import kept_edges
from ...proto.methods import METHODS
from ...proto.settings import DepthPruningSettings, PruningSettings, RunSettings, Settings, WidthPruningSettings
from ...reward_service.scorers import SCORERS, WITHOUT_FILES

FILES_OF_REWARDS = ("pretrained", "tokenizer", "backbone", "instruction")
"""Settings that say where a built-in reward's files are."""
MAX_SPREAD_RATIO = 10
"""Maximum ratio of the spreads of two rewards' weighted scores that gives no warning."""


def advice(settings: RunSettings) -> list[str]:
    """One line for each setting that doesn't do what it seems to; `check`, `train` and `submit` show them."""
    parts = (_of_prompts, _of_schedule, _of_pruning, _of_rewards, _of_learning, _of_evaluation)
    return [line for part in parts for line in part(settings)]


def outweighed(settings: RunSettings, shares: Mapping[str, float]) -> list[str]:
    """A warning if the sum of rewards is dominated by one of them, given their `shares` in the gradient."""
    spread = {name: share for name, share in shares.items() if share}
    if settings.advantage.combine == "advantages" or len(spread) < 2:
        return []
    widest, narrowest = max(spread, key=spread.__getitem__), min(spread, key=spread.__getitem__)
    times = spread[widest] / spread[narrowest]
    if times <= MAX_SPREAD_RATIO:
        return []
    return [
        f"rewards.{widest} outweighs rewards.{narrowest}: within trees its weighted scores spread {times:.0f} times as "
        f"far, so little is learned from '{narrowest}'; with advantage.combine 'advantages' their weights alone count"
    ]


def _of_prompts(settings: RunSettings) -> Iterator[str]:
    prompts = settings.prompts
    if prompts.focus and not prompts.focused:
        yield f"prompts.focus has no effect: {prompts.focus:g} of {prompts.per_iteration} prompts is less than one"
    if not prompts.focus and _changed(prompts, "focus_decay"):
        yield "prompts.focus_decay has no effect: prompts.focus is 0"


def _of_schedule(settings: RunSettings) -> Iterator[str]:
    given, schedule = settings.schedule, settings.schedule.build(1, settings.seed)
    if given.sibling_spread is not None and not schedule.splits:
        yield "schedule.sibling_spread has no effect: the schedule doesn't split"
    if given.sibling_spread == 0 and schedule.splits:
        yield "schedule.sibling_spread is 0: siblings are equal, and a split teaches nothing"
    longest = max(step.stride for step in schedule.steps)
    if given.ode_stride and given.ode_stride > 1 and longest == 1 and not given.varies:
        yield "schedule.ode_stride has no effect: no two deterministic steps follow each other"
    stride, every = (_effective(settings, name) for name in ("window_stride", "window_every"))
    if stride == 0:
        for name in ("window_every", "window_end"):
            if getattr(given, name) is not None:
                yield f"schedule.{name} has no effect: schedule.window_stride is 0, so the window stays where it is"
    elif stride and every and settings.iterations <= every:
        yield f"the window doesn't move in {settings.iterations} iterations: schedule.window_every is {every}"


def _effective(settings: RunSettings, name: str) -> int | None:
    """A setting of the schedule as the method has it, by default too; None if it hasn't."""
    parameter = inspect.signature(METHODS[settings.schedule.method]).parameters.get(name)
    given: int | None = getattr(settings.schedule, name)
    return given if given is not None or parameter is None else parameter.default


def _of_pruning(settings: RunSettings) -> Iterator[str]:
    for kind in ("width", "depth"):
        part: WidthPruningSettings | DepthPruningSettings | None = getattr(settings.pruning, kind)
        if part is None:
            continue
        if part.first_iteration > settings.iterations:
            yield (
                f"pruning.{kind} has no effect: it begins with iteration {part.first_iteration}, and the run has "
                f"{settings.iterations}"
            )
            continue
        schedule, only = settings.schedule.build(), PruningSettings.model_validate({kind: part})
        values = np.arange(float(schedule.nodes))
        last = min(part.last_iteration or settings.iterations, settings.iterations)
        # A window of depths slides on to others, to every step at most.
        every = part.every if isinstance(part, DepthPruningSettings) else last
        iterations = range(part.first_iteration, last + 1, every)[: schedule.grid_steps]
        kept = (kept_edges(values, schedule, only, iteration).sum() for iteration in iterations)
        if not settings.schedule.varies and all(count == schedule.trained_edges for count in kept):
            yield f"pruning.{kind} has no effect: it leaves out none of the {schedule.trained_edges} trained edges"
    if (width := settings.pruning.width) and width.mode == "parent_top1" and _changed(width, "keep"):
        yield "pruning.width.keep has no effect: pruning.width.mode is 'parent_top1'"
    if depth := settings.pruning.depth:
        for name in ("every", "stop", "direction"):
            if depth.mode == "fixed" and _changed(depth, name):
                yield f"pruning.depth.{name} has no effect: pruning.depth.mode is 'fixed'"
        last = min(depth.last_iteration or settings.iterations, settings.iterations)
        if depth.mode == "sliding" and 0 <= last - depth.first_iteration < depth.every:
            pruned = last - depth.first_iteration + 1
            yield f"pruning.depth doesn't slide in the {pruned} iterations that it prunes: every is {depth.every}"


def _of_rewards(settings: RunSettings) -> Iterator[str]:
    for name, reward in settings.rewards.items():
        if reward.compares:
            yield (
                f"rewards.{name} compares the leaves of a tree: its mean is always 0.5, in evaluations too; watch "
                "another reward beside it (weight 0)"
            )
        place = next((place for place in ("function", "url", "judge") if getattr(reward, place) is not None), None)
        if place:
            reason = f"rewards.{name}.{place} gives the scores, and reads no such file"
        elif reward.scorer is None and SCORERS.get(name, "").partition(":")[0] in WITHOUT_FILES:
            reason = f"the built-in reward '{name}' reads no such file"
        else:
            continue
        for setting in FILES_OF_REWARDS:
            if _changed(reward, setting):
                yield f"rewards.{name}.{setting} has no effect on scores: {reason}"


def _of_learning(settings: RunSettings) -> Iterator[str]:
    advantage, optimizer, rollout = settings.advantage, settings.learner.optimizer, settings.rollout
    objective = settings.learner.objective
    if settings.learner.learns_from_leaves:
        if objective == "nft" and _changed(settings.learner, "clip_range"):
            yield "learner.clip_range has no effect: learner.objective is 'nft', which has no ratio to clip"
        if objective == "awm" and _changed(settings.learner.nft, "strength"):
            yield "learner.nft.strength has no effect: learner.objective is 'awm'"
        for name in ("edge_weight", "noise_weight", "fusion", "fusion_beta"):
            if _changed(advantage, name):
                leaves = f"learner.objective is '{objective}', which learns from leaves alone"
                yield f"advantage.{name} has no effect: {leaves}"
    else:
        if _changed(settings.learner, "nft"):
            yield f"learner.nft has no effect: learner.objective is '{objective}'"
        if advantage.fusion == "uniform" and _changed(advantage, "fusion_beta"):
            yield "advantage.fusion_beta has no effect: advantage.fusion is 'uniform'"
        if advantage.fusion != "uniform" and advantage.fusion_beta == 0:
            yield f"advantage.fusion '{advantage.fusion}' has no effect: advantage.fusion_beta is 0, the plain mean"
    if settings.learner.trust_region == "divergence" and _changed(settings.learner, "clip_range"):
        yield "learner.clip_range has no effect: learner.trust_region is 'divergence', which clips no ratio"
    if settings.learner.trust_region != "divergence" and _changed(settings.learner, "divergence_limit"):
        yield f"learner.divergence_limit has no effect: learner.trust_region is '{settings.learner.trust_region}'"
    if not settings.learner.kl_weight and _changed(settings.learner, "kl_scale"):
        yield "learner.kl_scale has no effect: learner.kl_weight is 0"
    if settings.learner.trust is not None and (settings.learner.passes == 1 or settings.learner.learns_from_leaves):
        reason = (
            f"passes is {settings.learner.passes}" if settings.learner.passes == 1 else f"objective is '{objective}'"
        )
        yield f"learner.trust has no effect: learner.{reason}"
    updates = settings.iterations * settings.learner.updates_per_iteration
    if optimizer.warmup_updates >= updates:
        yield (
            f"learner.optimizer.warmup_updates is {optimizer.warmup_updates}, and the run makes {updates} updates: "
            "learner.optimizer.learning_rate is never reached"
        )
    if rollout.max_unscored_fraction and settings.execution == "in_process":
        yield "rollout.max_unscored_fraction has no effect: execution is 'in_process'"
    elif rollout.max_unscored_fraction and not rollout.trees_to_leave_out(settings.prompts.per_iteration):
        yield (
            f"rollout.max_unscored_fraction has no effect: {rollout.max_unscored_fraction:g} of "
            f"{settings.prompts.per_iteration} trees is less than one"
        )


def _of_evaluation(settings: RunSettings) -> Iterator[str]:
    prompts = settings.prompts
    if prompts.held_out and prompts.held_out_count:
        yield "prompts.held_out_count has no effect: prompts.held_out names the prompts to evaluate on"
    if not prompts.held_out and not prompts.held_out_count:
        for name in type(settings.evaluation).model_fields:
            if _changed(settings.evaluation, name):
                yield f"evaluation.{name} has no effect: there is neither prompts.held_out nor prompts.held_out_count"


def _changed(section: Settings, name: str) -> bool:
    """Whether a setting isn't its default. Recipes in run folders name all settings, so being named is no sign."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)
