"""Runs that studies share: what one has made, another takes over."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...proto.atomic_files import whole
from ...proto.recipe import save_recipe
from ...proto.settings import RunSettings
from ..run.changes import find_changes
from ..run.evaluation import comparable
from ..run.folder import RunFolder
from ..run.new_folder import VERSIONS, has_begun, kept_fingerprint, policy_fingerprint, versions
from ..run.state import read_state
from .file import sized_as
from .trials import OF_NO_CONSEQUENCE, Trial

KERNEL = re.compile(r"^Linux-.+-(?=[^-]+-with-)")
"""The kernel's release in the name of a platform, up to the processor and the C library: no result depends on it."""


@dataclass(frozen=True)
class FinishedRun:
    """What the folder of a finished run tells of it."""

    path: Path
    iterations: int
    evaluated: frozenset[int]
    """The iterations after which it was evaluated, in the way of its last evaluation."""
    settings: RunSettings
    policy: str | None
    """Fingerprint of the policy that it began with; None if it isn't known."""


def finished_runs(studies: Path) -> list[FinishedRun]:
    """The runs of all studies in a folder that have finished, with the versions that are here (on any Linux kernel).

    A folder that can't be read holds none.
    """
    found, here = [], _kernel_aside(versions())
    for recipe in sorted(studies.glob("*/runs/*/recipe.yaml")):
        run = RunFolder(recipe.parent)
        try:
            if read_state(run.path).get("state") != "finished":
                continue
            if _kernel_aside(json.loads((run.path / VERSIONS).read_text())) != here:
                continue
            iterations = next(reversed(run.lines("metrics")))["iteration"]
            evaluated = frozenset(line["iteration"] for line in comparable(run.lines("evaluations")))
            found.append(FinishedRun(run.path, iterations, evaluated, run.settings, kept_fingerprint(run.path)))
        except (OSError, ValueError, LookupError, TypeError, StopIteration):
            continue
    return found


def take_over(trial: Trial, runs: Iterable[FinishedRun]) -> Path | None:
    """Copy the first of other studies' runs that is what a trial would be, and return the folder that it was in.

    It has the trial's settings and policy, and all its iterations and evaluations. None if there is none, or if the
    trial has begun. What a driver has left of the trial that was killed before it had begun is replaced.
    """
    if trial.state != "not started" or has_begun(trial.folder.path):
        return None
    for run in runs:
        if _is_that_of(run, trial):
            with whole(trial.folder.path, replace_folder=True) as copy:
                shutil.copytree(run.path, copy)
                own = {name: getattr(trial.settings, name) for name in ("name", "runs", "schedule")}
                save_recipe(run.settings.model_copy(update=own), copy)
            return run.path
    return None


def _is_that_of(run: FinishedRun, trial: Trial) -> bool:
    made, wanted = run.settings, trial.settings
    # First what is told apart without reading all prompts, as `find_changes` does.
    if run.iterations < wanted.iterations or made.seed != wanted.seed or not _same_trees(made, wanted):
        return False
    if not made.evaluation.every or wanted.evaluation.every % made.evaluation.every:
        return False  # it wasn't evaluated when the trial would be
    if wanted.iterations not in run.evaluated:
        return False  # the trial would be evaluated after its last iteration too, wherever that falls
    try:
        changed = [change.setting for change in find_changes(made, sized_as(wanted, run.path))]
    except (OSError, ValueError):  # prompts that are gone, or so different that no run could change to it
        return False
    if made.evaluation.undo_falls and any(name.startswith(("evaluation", "checkpoint.keep_best")) for name in changed):
        return False  # they decide which falls were undone, and what the run went back to
    if wanted.learner.optimizer.schedule != "constant" and "iterations" in changed:
        return False  # their number decides about every learning rate
    if not all(name.startswith("schedule.") or OF_NO_CONSEQUENCE.match(name) for name in changed):
        return False
    return run.policy == policy_fingerprint(wanted)


def _kernel_aside(versions: Mapping[str, str]) -> dict[str, str]:
    return {**versions, "platform": KERNEL.sub("Linux-", versions["platform"])}


def _same_trees(one: RunSettings, other: RunSettings) -> bool:
    """Whether two recipes describe the same trees, in every iteration, if not in the same words."""
    first, second = one.schedule, other.schedule
    if first == second:
        return True
    return not (first.varies or second.varies) and first.build(1, one.seed) == second.build(1, other.seed)
