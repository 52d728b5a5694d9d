"""The measured seconds per iteration of a study's variants: `timing.jsonl` in its folder, one line per measurement."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from ...proto.settings import RunSettings
from ..run.evaluation import short_name
from ..run.folder import RunFolder
from .file import Study, sized_as

FILE = "timing.jsonl"
OF_NO_INFLUENCE: dict[str, Any] = {
    "name": True,
    "runs": True,
    "resume": True,
    "seed": True,
    "iterations": True,
    "evaluation": True,
    "checkpoint": True,
    "logging": True,
    "prompts": {"train", "held_out", "held_out_count", "column"},
    "learner": {"optimizer": True, "nft": {"strength"}},
}
"""Settings on which the seconds of an iteration don't depend."""


def timing_name(settings: RunSettings) -> str:
    """A short name of all settings on which the seconds of an iteration depend.

    Those with their default value are left out, so that measurements outlive settings that are new.
    """
    unused = {"pools": True} if settings.execution == "in_process" else {}
    content = settings.model_dump(mode="json", exclude=OF_NO_INFLUENCE | unused, exclude_defaults=True)
    return short_name(_filled(content))


def _filled(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without those of its sections of which nothing is left."""
    within = {name: _filled(value) if isinstance(value, dict) else value for name, value in section.items()}
    return {name: value for name, value in within.items() if value != {}}


def timed_together(study: Study) -> dict[str, RunSettings]:
    """Timing name -> settings of all variants that take seconds of their own."""
    every = [candidate.settings for candidates in study.variants.values() for candidate in candidates]
    return {timing_name(settings): settings for settings in every if settings.execution == "in_process"}


def measured(study: Study, settings: RunSettings) -> list[dict[str, Any]]:
    """The measurements of these settings: `round`, `iteration`, `seconds` and `phase_seconds` of each.

    Only those that were made in turns with all other variants, and of these the newest: seconds of another hour can't
    be compared.
    """
    file, needed = study.folder / FILE, set(timed_together(study))
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = [line for line in lines if needed <= set(line["together"])]
    name = timing_name(settings)
    return [line for line in lines if line["together"] == lines[-1]["together"] and line["settings"] == name]


def to_measure(study: Study) -> list[RunSettings]:
    """The settings of all variants that take seconds of their own, and for which rounds are missing."""
    rounds = study.file.timing_rounds
    return [settings for settings in timed_together(study).values() if len(measured(study, settings)) < rounds]


def seconds_per_iteration(study: Study, settings: RunSettings) -> float | None:
    """The seconds of an iteration; None if they aren't known yet.

    With execution `in_process`, those that were measured for the study. On Ray, those that its own runs took: their
    pools have their processors for themselves.
    """
    return typical([line["seconds"] for line in measurements(study, settings)])


def measurements(study: Study, settings: RunSettings) -> list[dict[str, Any]]:
    """What `seconds_per_iteration` is computed from: measurements of the study, or iterations of its runs on Ray."""
    if settings.execution == "in_process":
        return measured(study, settings)
    name = timing_name(settings)
    # By the file first: in the folders `auto` is a number, which another variant may have been given.
    alike = [v for v, own in study.variants.items() if name in [timing_name(each.settings) for each in own]]
    folders = [RunFolder(study.folder / "runs" / f"{v}-seed{seed}") for v in alike for seed in study.file.seeds]
    return [line for run in folders if _has_these(run, settings) for line in run.lines("metrics")]


def _has_these(run: RunFolder, settings: RunSettings) -> bool:
    """Whether the run in a folder, if there is one, takes the seconds of these settings."""
    if not (run.path / "recipe.yaml").is_file():
        return False
    return timing_name(run.settings) == timing_name(sized_as(settings, run.path))


def typical(seconds: Sequence[float]) -> float | None:
    """The mean without the fastest and the slowest fifth; None without measurements."""
    return float(stats.trim_mean(seconds, 0.2)) if len(seconds) else None
