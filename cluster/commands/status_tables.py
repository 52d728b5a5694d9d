"""The statuses of runs as tables in the terminal."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..run.state import view_command
from ..run.status import RunStatus, describe

LITTLE_BYTES = 2**30
"""Free disk below which a status tells of it."""
COLOURS = {"running": "green", "finished": "green", "failed": "red", "lost": "red", "stopped": "yellow"}


def show_all(runs: Sequence[RunStatus], console: Console) -> None:
    """Runs as a table, a line each."""
    if not runs:
        console.print("no runs")
        return
    table = Table(box=box.SIMPLE)
    table.add_column("run", overflow="fold")
    for column in ("state", "since", "iteration", "reward", "held-out", "left"):
        table.add_column(column, no_wrap=True)
    for run in runs:
        table.add_row(
            Text(Path(run.folder).name if run.folder else f"{run.name} (on the cluster)"),
            Text(run.state, style=COLOURS.get(run.state, "")),
            _ago(run.since),
            _of(run),
            Text(_rewards(dict([*run.rewards.items()][:1]))),
            Text(_rewards(dict([*run.held_out.items()][:1]))),
            "" if run.seconds_left is None else duration(run.seconds_left),
        )
    console.print(table)


def show(run: RunStatus, console: Console) -> None:
    """A run's status as lines, and its processes as a table."""

    def line(label: str, text: str) -> None:
        if text:
            console.print(f"{label:<15}{escape(text)}", highlight=False, soft_wrap=True)

    head = f"[{COLOURS.get(run.state, 'default')}]{run.state}[/]"
    since = f" for {duration(time.time() - run.since)} ({clock(run.since)})" if run.since and run.live else ""
    if run.since and not run.live:
        since = f" since {clock(run.since)} ({_ago(run.since)})"
    console.print(f"[bold]{escape(run.name)}[/]: {head}{since}", highlight=False, soft_wrap=True)
    line("folder", run.folder or "")
    line("driver", run.driver or "")
    line("doing", run.doing)
    first, *further = (run.error or "").splitlines() or [""]
    line("error", f"{first} (log.txt has all)" if further else first)
    ended = f", the newest ended {_ago(run.iteration_ended)}" if run.iteration_ended else ""
    line("iteration", _of(run) + ended)
    line("reward", _rewards(run.rewards))
    if run.held_out:
        line("held-out", f"{_rewards(run.held_out)} (after iteration {run.held_out_iteration})")
    if run.seconds_per_iteration is not None:
        left = "" if run.seconds_left is None else f", about {duration(run.seconds_left)} left"
        line("per iteration", duration(run.seconds_per_iteration) + left)
    line("checkpoint", "" if run.checkpoint is None else f"of iteration {run.checkpoint}")
    line("restarts", f"{run.recoveries} after a fault, {run.resumed} by --resume")
    if run.disk_free is not None and run.disk_free < LITTLE_BYTES:
        line("disk", f"has only {run.disk_free / 2**20:.0f} MiB free")
    for change in run.changes:
        line("changed", _change(change))
    line("unreachable", run.unreachable or "")
    line("continue with", run.command or "")
    line("see inside", view_command(Path(run.folder)) if run.folder else "")
    if run.controller:
        show_processes(run.controller, console)


def show_processes(status: dict[str, Any], console: Console) -> None:
    """Print a controller's report: the current phase, and every process."""
    console.print(
        f"{status['phase']} {status['share']:.0%}, weights version {status['weights_version']}, "
        f"{status['trees_in_flight']} trees in flight",
        highlight=False,
    )
    table = Table("pool", "process", "node", "state")
    for pool in ("rollout_workers", "learner"):
        for process in status["pools"][pool]:
            table.add_row(pool, str(process["pid"]), process["node"], process["state"])
    for model, states in status["pools"]["rewards"].items():
        shown = ", ".join(f"{count} {state.lower()}" for state, count in states.items() if count)
        table.add_row(Text(f"rewards.{model}"), "replicas", "", shown)
    console.print(table)


def duration(seconds: float) -> str:
    """Seconds in the unit that one thinks in."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def clock(moment: float) -> str:
    """Local date and time of a moment in Unix seconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _ago(moment: float | None) -> str:
    return "" if moment is None else f"{duration(max(0.0, time.time() - moment))} ago"


def _of(run: RunStatus) -> str:
    return f"{run.iteration} of {run.iterations}" if run.iterations else str(run.iteration)


def _rewards(means: dict[str, float]) -> str:
    return "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())


def _change(change: dict[str, Any]) -> str:
    """A line of changes.jsonl."""
    since = "" if "went_back_from" in change else f", from iteration {change.get('iteration')} on"
    return describe(change) + since
