"""What a run prints in the terminal."""

import json
import logging
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ... import __version__
from ...proto.errors import brief
from ...proto.settings import RunSettings
from ...proto.settings_errors import named_settings
from .changes import Change
from .checkpoints import DAMAGED_PREFIX
from .falls import Fall
from .folder import RunFolder
from .loop import IterationReport
from .state import RunState, State, view_command
from .stop import Stopped
from .text_log import TextLog, logged_output

KEEP_OUT: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False}
"""Arguments for Rich's bars, which otherwise capture everything that is printed meanwhile."""


class RunDisplay:
    """Tells how a run goes: in the terminal, in log.txt and in state.json.

    The terminal has a bar over the iterations with the phase at work, and a line for each event.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout)  # today's stdout: it may be redirected later
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._log: TextLog | None = None
        self._state: RunState | None = None
        self._warned = ""
        self._hint = ""
        """The command that shows the run, until it has been told."""

    @contextmanager
    def recording(self, folder: Path, settings: RunSettings) -> Iterator[None]:
        """Within the block, all messages, and how the block ends, are also written to the run folder."""
        self._log = TextLog(folder)
        self._log.add(f"branchgrpo {__version__}: {shlex.join(sys.argv)}")
        self._state = RunState(folder, settings.name, settings.execution, settings.iterations)
        self._hint = f"to see inside: {view_command(folder)}"
        with logged_output(self._log, self._show):
            try:
                yield
            except Stopped as stopped:
                self._log.add(str(stopped))
                self._state.change("stopped")
                raise
            except BaseException as error:
                self._log.add("".join(traceback.format_exception(error)).rstrip(), logging.ERROR)
                self._state.change("failed", error=str(error) or type(error).__name__)
                raise
            else:
                self._state.change("finished")
            finally:
                self._log = self._state = None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A spinner during `what`."""
        self._does(what)
        idle = self._progress is None and self.console.is_terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, transient=True, disable=not idle, **KEEP_OUT) as spinner:
            spinner.add_task(what, total=None)
            yield
        self._does("")

    @contextmanager
    def iterating(self, done: int, total: int) -> Iterator[None]:
        """The bar over all iterations."""
        self._become("running")
        if self._hint:
            self._say(self._hint)
            self._hint = ""
        columns = (
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[phase]}"),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal, **KEEP_OUT) as progress:
            self._progress, self._task = progress, progress.add_task("", total=total, completed=done, phase="")
            try:
                yield
            finally:
                self._progress = self._task = None

    def within(self, phase: str, share: float) -> None:
        """Show the progress of the current iteration."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, phase=f"{phase} {share:.0%}")

    def iteration(self, report: IterationReport, seconds: float) -> None:
        """Print the rewards of a finished iteration, its seconds and, by phase, wall, CPU and GPU seconds."""
        rewards = "  ".join(f"{name} {values.mean():.3f}" for name, values in report.rewards.items())
        cpu = {phase: usage.cpu_seconds for phase, usage in report.usage.items()}
        gpu = {phase: usage.gpu_seconds for phase, usage in report.usage.items() if usage.gpu_seconds is not None}
        peak = "  ".join(f"{phase} {share:.0%}" for phase, share in report.utilisation.items())
        parts = [
            f"iteration {report.iteration:>4}  {rewards}",
            _by_phase(seconds, report.seconds),
            f"CPU {_by_phase(sum(cpu.values()), cpu)}",
            *([f"GPU {_by_phase(sum(gpu.values()), gpu)}"] if gpu else []),
            *([f"of the GPUs' peak {peak}"] if peak else []),
        ]
        self._say("  |  ".join(parts))
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def evaluation(self, iteration: int, means: dict[str, float]) -> None:
        """Print the means of an evaluation."""
        rewards = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        self._say(f"evaluation after iteration {iteration}: {rewards}", style="bold")

    def tell_resumption(self, checkpoint: Path, iteration: int) -> None:
        """The run continues from the checkpoint of an iteration. After a fault, `tell_loss` has reported it already."""
        if self._state and self._state.state == "recovering":
            return
        self._say(f"continues after iteration {iteration}, from {checkpoint}")

    def tell_changes(self, changes: Sequence[Change], iteration: int, went_back_from: int | None) -> None:
        """Settings have other values from an iteration on, to which the run may have gone back."""
        if went_back_from is not None:
            self._say(f"goes back from iteration {went_back_from} to {iteration - 1 or 'the start'}")
        for change in changes:
            self._say(f"from iteration {iteration} on, {change}")

    def tell_all_done(self, folder: Path, iterations: int) -> None:
        """Nothing is left of a run that is to continue."""
        more = shlex.join(["branchgrpo", "train", str(folder), "--resume", f"iterations={2 * iterations}"])
        self._say(f"all iterations are done, {iterations} of them; for more: {more}")

    def tell_loss(self, error: Exception, done: int) -> None:
        """A process was lost, and the run continues from the checkpoint of iteration `done`."""
        self._become("recovering", error=brief(error))
        where = f"iteration {done}" if done else "the beginning"
        self._warn(f"{brief(error)}; restarting all processes from {where}")

    def tell_fall(self, fall: Fall, pace: float) -> None:
        """The held-out reward has fallen, and the run continues from its best weights."""
        self._warn(
            f"the held-out reward fell from {fall.before:.3f} (iteration {fall.best}) to {fall.now:.3f}; continuing "
            f"with the weights of iteration {fall.best} and {pace:g} times the learning rate"
        )

    def stopping(self, iteration: int, seconds: float | None) -> None:
        """Somebody has asked the run to stop; `seconds` are what is left of the iteration, if that is known."""
        self._become("stopping")
        about = "" if seconds is None else f" (in about {seconds:.0f} s)"
        self._warn(f"stopping after iteration {iteration}{about}, with a checkpoint; ask again to stop at once")

    def warn_damage(self, aside: Path, why: str) -> None:
        """A checkpoint can't be used, and was set aside."""
        self._warn(
            f"checkpoint {aside.name.removeprefix(DAMAGED_PREFIX)} is damaged ({why}), isn't used, and is now {aside}"
        )

    def warn_full_disk(self, error: BaseException) -> None:
        """The disk is full, and the run waits."""
        self._does("waiting for room on the disk")
        self._warn(f"the disk is full, waiting for room: {error}")

    def advise(self, lines: Sequence[str]) -> None:
        """Print warnings about settings without effect."""
        for line in lines:
            self._warn(f"warning: {line}")

    def tell_sizes(self, settings: RunSettings, names: Sequence[str]) -> None:
        """Print the numbers that settings have which were `auto`."""
        if names:
            numbers = named_settings(settings, names)
            self._say("auto: " + " ".join(f"{name}={number}" for name, number in numbers.items()))

    def tell_room(self) -> None:
        """The disk has room again, and the write has succeeded."""
        self._does("")
        self._say("there is room on the disk again")

    def _become(self, state: State, **more: str) -> None:
        """Write a new state into the run folder, if this records one."""
        if self._state:
            self._state.change(state, **more)

    def _does(self, what: str) -> None:
        """Write what is at work into the run folder, if this records one."""
        if self._state:
            self._state.does(what)

    def _warn(self, text: str) -> None:
        self._say(text, style="yellow", level=logging.WARNING)

    def _say(self, text: str, style: str | None = None, level: int = logging.INFO) -> None:
        """A line in the terminal and in log.txt."""
        self._print(text, style)
        if self._log:
            self._log.add(text, level)

    def _show(self, text: str, level: int) -> None:
        """Show a line that is in log.txt already. Of a repeated warning only the first is shown."""
        if level >= logging.WARNING:
            if text == self._warned:
                return
            self._warned = text
        self._print(text, "yellow" if level >= logging.WARNING else None)

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def finished(self, folder: RunFolder) -> None:
        """Show the held-out rewards before and after as a table, and where the results lie."""
        result = json.loads((folder.path / "summary.json").read_text())
        if result["before"] and result["after"]:
            begun = result["before_iteration"]
            before = f"after iteration {begun}" if begun else "before"
            table = Table("held-out reward", before, "after", title=f"{result['evaluation_prompts']} prompts")
            for name, mean in result["before"].items():
                table.add_row(Text(name), f"{mean:.3f}", f"{result['after'][name]:.3f}")
            self.console.print(table)
        self._say(f"{result['iterations']} iterations, {result['training_seconds']:.0f} s of training")
        for label, name in (
            ("before and after", "before_after.png"),
            ("reward curve", "reward_curve.png"),
            ("exported model", "export"),
            ("summary", "summary.json"),
            ("log", "log.txt"),
        ):
            if (folder.path / name).exists():
                self._say(f"{label + ':':<18}{folder.path / name}")


def _by_phase(seconds: float, phases: Mapping[str, float]) -> str:
    """All seconds, and those of phases that took some."""
    told = "  ".join(f"{name} {spent:.1f}" for name, spent in phases.items() if spent >= 0.05)
    return f"{seconds:.1f} s: {told}"
