"""The status of a run, as the files of its folder tell it, without asking any of its processes."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from .checkpoints import numbered
from .driver_lock import driver_of
from .state import END_STATES, read_state, resume_command

TAIL_BYTES = 2**16
"""Bytes of a file of lines that are read, from its end."""
WINDOW = 10
"""Number of newest iterations whose median is the seconds of one."""
MAX_CHANGES = 200
"""Maximum number of changed settings that a status has, the newest."""


@dataclass
class RunStatus:
    """The status of a run. Times are Unix seconds."""

    name: str
    folder: str | None
    """Path of the run folder; None if only the run's cluster is known."""
    state: str
    """`starting`, `running`, `recovering`, `stopping`, `finished`, `stopped`, `failed`, `lost` (its driver died) or
    `unknown` (run by a version that didn't tell)."""
    since: float | None = None
    doing: str = ""
    error: str | None = None
    driver: str | None = None
    iteration: int = 0
    iterations: int | None = None
    iteration_ended: float | None = None
    checkpoint: int | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    """Mean rewards of the newest iteration's leaves."""
    held_out: dict[str, float] = field(default_factory=dict)
    """Mean rewards of the newest evaluation."""
    held_out_iteration: int | None = None
    seconds_per_iteration: float | None = None
    seconds_left: float | None = None
    recoveries: int = 0
    resumed: int = 0
    disk_free: int | None = None
    """Bytes that are free on the disk of the run folder."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Settings that were changed when the run was resumed."""
    command: str | None = None
    """The command that continues a run which ended before its last iteration."""
    controller: dict[str, Any] | None = None
    """The report of the run's controller on Ray about its processes."""
    unreachable: str | None = None
    """Why the controller gives no report."""

    @property
    def live(self) -> bool:
        """Whether its driver is at work."""
        return self.state in ("starting", "running", "recovering", "stopping")


def status_of(folder: Path) -> RunStatus:
    """The status of the run in a folder, without its controller's."""
    recorded, seen = read_state(folder), driver_of(folder)
    run = RunStatus(recorded.get("name", folder.name), str(folder), "unknown")
    if seen and seen.alive:
        # What an earlier driver wrote isn't about this one.
        mine = recorded.get("pid") == seen.driver.pid and recorded.get("state", "failed") not in END_STATES
        run.state, run.since = (recorded["state"], recorded.get("since")) if mine else ("starting", seen.driver.since)
        run.driver = str(seen.driver)
    elif recorded.get("state") in END_STATES:
        run.state, run.since = recorded["state"], recorded.get("since")
    elif recorded or seen:
        run.state, run.since = "lost", seen.last_seen if seen else recorded.get("since")
    elif (folder / "summary.json").is_file():
        run.state, run.since = "finished", (folder / "summary.json").stat().st_mtime
    if run.live:
        run.doing = recorded.get("doing", "")
    run.error = recorded.get("error")
    run.iterations = recorded.get("iterations")
    run.recoveries, run.resumed = recorded.get("recoveries", 0), max(0, recorded.get("drivers", 1) - 1)
    with suppress(OSError):
        run.disk_free = shutil.disk_usage(folder).free
    run.changes = _last_lines(folder / "changes.jsonl", MAX_CHANGES)
    run.checkpoint = max(numbered(folder), default=None)
    metrics, evaluations = _last_lines(folder / "metrics.jsonl", WINDOW), _last_lines(folder / "evaluations.jsonl", 1)
    _add_figures(run, metrics, evaluations)
    if run.state in ("stopped", "failed", "lost"):
        run.command = resume_command(folder)
    return run


def _add_figures(run: RunStatus, metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> None:
    """Add what the newest lines of both files tell."""
    with suppress(KeyError, TypeError, AttributeError):  # lines of another version
        if metrics:
            newest = metrics[-1]
            run.iteration = newest["iteration"]
            run.iteration_ended = newest["started"] + newest["seconds"]
            run.rewards = _numbers({name: values["mean"] for name, values in newest["rewards"].items()})
            run.seconds_per_iteration = median(line["seconds"] for line in metrics)
            if run.live and run.iterations:
                run.seconds_left = (run.iterations - run.iteration) * run.seconds_per_iteration
    with suppress(KeyError):
        if evaluations:
            run.held_out = _numbers({name: mean for name, mean in evaluations[-1].items() if name != "iteration"})
            run.held_out_iteration = evaluations[-1]["iteration"]


def _numbers(means: Mapping[str, Any]) -> dict[str, float]:
    return {name: mean for name, mean in means.items() if isinstance(mean, int | float)}


def describe(change: Mapping[str, Any]) -> str:
    """A line of changes.jsonl in words."""
    if "went_back_from" in change:
        return f"went back from iteration {change['went_back_from']} to {change.get('to')}"
    if "fell_from" in change:
        before, now = (_digits(change.get(key), ".3f") for key in ("fell_from", "to"))
        return (
            f"held-out reward fell from {before} to {now}: weights of iteration {change.get('best')} again, "
            f"{_digits(change.get('pace'), 'g')} times the learning rate"
        )
    before, now = (shorten(json.dumps(change.get(key)), 60, placeholder="…") for key in ("before", "now"))
    return f"{change.get('setting')}: {before} → {now}"


def _digits(value: Any, form: str) -> str:
    """A number in this form; anything else, in a damaged line, as it is."""
    return format(value, form) if isinstance(value, int | float) else str(value)


def _last_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` lines of a file of JSON lines, among those that can be read."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in reversed(text.splitlines()):
        if len(found) == count:
            break
        with suppress(ValueError):
            if isinstance(value := json.loads(line), dict):
                found.append(value)
    return found[::-1]
