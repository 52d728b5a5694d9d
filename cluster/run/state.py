"""The state of a run: `state.json` in its folder, written by its driver at each change and read by `branchgrpo
status`.
"""

import json
import os
import shlex
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # Pydantic takes that of `typing` from Python 3.12 on

from ...proto.atomic_files import write_text

FILE = "state.json"
State = Literal["starting", "running", "recovering", "stopping", "finished", "stopped", "failed"]
END_STATES = ("finished", "stopped", "failed")
"""States of a run that has no driver. One in any other state whose driver is dead is lost."""
Moment = Annotated[float, Field(ge=0, lt=1e11)]
"""Unix seconds that have a date."""


class Recorded(TypedDict, total=False):
    """The content of the file."""

    name: str
    execution: str
    iterations: int
    host: str
    pid: int
    drivers: int
    recoveries: int
    state: str
    since: Moment
    doing: str
    error: str | None


RECORDED = TypeAdapter(Recorded)


class RunState:
    """The state of the run that this process drives."""

    def __init__(self, folder: Path, name: str, execution: str, iterations: int) -> None:
        """Write the state `starting`. The counts of an earlier driver are continued."""
        self._folder, before = folder, read_state(folder)
        self._now: Recorded = {
            "name": name,
            "execution": execution,
            "iterations": iterations,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "drivers": before.get("drivers", 0) + 1,
            "recoveries": before.get("recoveries", 0),
        }
        self.change("starting")

    @property
    def state(self) -> str:
        return str(self._now["state"])

    def change(self, state: State, *, doing: str = "", error: str | None = None) -> None:
        """Write a new state: `doing` says what is at work, `error` what went wrong."""
        if state != self._now.get("state"):
            self._now["since"] = time.time()
        self._now |= {"state": state, "doing": doing, "error": error}
        if state == "recovering":
            self._now["recoveries"] += 1
        self._write()

    def does(self, what: str) -> None:
        """Note what is at work in the same state."""
        self._now["doing"] = what
        self._write()

    def _write(self) -> None:
        with suppress(OSError):  # a full disk: what is seen of a run must not end it
            write_text(self._folder / FILE, json.dumps(self._now, indent=2) + "\n")


def read_state(folder: Path) -> Recorded:
    """The last state that a driver has written into a run folder; empty if there is none that can be read."""
    try:
        return RECORDED.validate_json((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return {}


def view_command(folder: Path) -> str:
    """The command that shows the run in a folder as web pages."""
    return f"branchgrpo view {shlex.quote(str(folder))}"


def resume_command(folder: Path) -> str:
    """The command that continues the run in a folder."""
    return f"branchgrpo train {shlex.quote(str(folder))} --resume"
