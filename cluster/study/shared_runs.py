"""Runs that studies share: what one has made, another takes over."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from ...proto.atomic_files import whole
from ...proto.recipe import save_recipe
from ...proto.settings import RunSettings
from ..run.changes import find_changes
from ..run.folder import RunFolder
from ..run.new_folder import FINGERPRINTS, VERSIONS, has_begun, policy_fingerprint, versions
from .file import sized_as
from .trials import OF_NO_CONSEQUENCE, Trial

KERNEL = re.compile(r"^Linux-.+-(?=[^-]+-with-)")
"""The kernel's release in the name of a platform, up to the processor and the C library: no result depends on it."""


def take_over(trial: Trial, studies: Path) -> Path | None:
    """Copy the run of another study that is what a trial would be, and return the folder that it was in.

    It has the trial's settings and policy, was made with the versions that are here (on any Linux kernel), and has
    finished all the iterations and evaluations. None if there is none in the folders in `studies`, or if the trial has
    begun. What a driver has left of the trial that was killed before it had begun is replaced.
    """
    if trial.state != "not started" or has_begun(trial.folder.path):
        return None
    for path in sorted(studies.glob("*/runs/*/recipe.yaml")):
        run = RunFolder(path.parent)
        if _is_that_of(run, trial):
            with whole(trial.folder.path, replace_folder=True) as copy:
                shutil.copytree(run.path, copy)
                own = {name: getattr(trial.settings, name) for name in ("name", "runs", "schedule")}
                save_recipe(run.settings.model_copy(update=own), copy)
            return run.path
    return None


def _is_that_of(run: RunFolder, trial: Trial) -> bool:
    place = {"name": run.path.name, "runs": run.path.parent}
    there = Trial(trial.variant, trial.values, trial.settings.model_copy(update=place))
    try:
        if not there.finished:
            return False
        if _kernel_aside(json.loads((run.path / VERSIONS).read_text())) != _kernel_aside(versions()):
            return False
        made, fingerprint = run.settings, json.loads((run.path / FINGERPRINTS).read_text())["policy"]
        changed = [change.setting for change in find_changes(made, sized_as(trial.settings, run.path))]
    except (OSError, ValueError, LookupError, TypeError):  # unreadable, or so different that no run could change to it
        return False
    if not made.evaluation.every or trial.settings.evaluation.every % made.evaluation.every:
        return False  # it wasn't evaluated when the trial would be
    if trial.settings.learner.optimizer.schedule != "constant" and "iterations" in changed:
        return False  # their number decides about every learning rate
    if _same_trees(made, trial.settings):
        changed = [name for name in changed if not name.startswith("schedule.")]
    if not all(map(OF_NO_CONSEQUENCE.match, changed)):
        return False
    return bool(fingerprint == policy_fingerprint(trial.settings))


def _kernel_aside(versions: Mapping[str, str]) -> dict[str, str]:
    return {**versions, "platform": KERNEL.sub("Linux-", versions["platform"])}


def _same_trees(one: RunSettings, other: RunSettings) -> bool:
    """Whether two recipes describe the same trees, in every iteration, if not in the same words."""
    schedules = one.schedule, other.schedule
    first, second = (schedule.build(1, one.seed) for schedule in schedules)
    return first == second and not any(schedule.varies for schedule in schedules)
