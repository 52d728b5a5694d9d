"""What a person sees of a run in the terminal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .checkpoints import DAMAGED
from .loop import IterationReport
from .run_folder import RunFolder


class RunDisplay:
    """A bar over the iterations with the phase at work, and a line for each finished iteration."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A spinner while `what` goes on."""
        idle = self._progress is None and self.console.is_terminal
        with self.console.status(what) if idle else nullcontext():
            yield

    @contextmanager
    def iterating(self, done: int, total: int) -> Iterator[None]:
        """The bar over all iterations."""
        columns = (
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[phase]}"),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            self._progress, self._task = progress, progress.add_task("", total=total, completed=done, phase="")
            yield
        self._progress = self._task = None

    def within(self, phase: str, share: float) -> None:
        """How far the present iteration is."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, phase=f"{phase} {share:.0%}")

    def iteration(self, report: IterationReport, seconds: float) -> None:
        rewards = "  ".join(f"{name} {values.mean():.3f}" for name, values in report.rewards.items())
        phases = "  ".join(f"{name} {spent:.1f} s" for name, spent in report.seconds.items() if spent >= 0.05)
        line = f"iteration {report.iteration:>4}  {rewards}  |  {seconds:.1f} s: {phases}"
        self.console.print(line, highlight=False, soft_wrap=True)
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def evaluation(self, iteration: int, means: dict[str, float]) -> None:
        rewards = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        self.console.print(f"evaluation after iteration {iteration}: {rewards}", style="bold", highlight=False)

    def lost(self, error: Exception, done: int) -> None:
        """A process was lost, and the run goes on from the checkpoint of iteration `done`."""
        self._warn(f"{error}\nsetting all processes up again, from {f'iteration {done}' if done else 'the beginning'}")

    def damaged(self, aside: Path, why: str) -> None:
        """A checkpoint can't be used, and was set aside."""
        self._warn(
            f"checkpoint {aside.name.removeprefix(DAMAGED)} is damaged ({why}), and is now {aside}; taking the one "
            "before"
        )

    def full(self, error: BaseException) -> None:
        """The disk is full, and the run waits."""
        self._warn(f"the disk is full, waiting for room: {error}")

    def _warn(self, text: str) -> None:
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def finished(self, folder: RunFolder) -> None:
        """Before and after as a table, and where the results lie."""
        result = json.loads((folder.path / "summary.json").read_text())
        if result["before"] and result["after"]:
            table = Table("held-out reward", "before", "after", title=f"{result['evaluation_prompts']} prompts")
            for name, before in result["before"].items():
                table.add_row(name, f"{before:.3f}", f"{result['after'][name]:.3f}")
            self.console.print(table)
        self.console.print(f"{result['iterations']} iterations, {result['training_seconds']:.0f} s of training")
        for label, name in (
            ("before and after", "before_after.png"),
            ("reward curve", "reward_curve.png"),
            ("exported model", "export"),
            ("summary", "summary.json"),
        ):
            if (folder.path / name).exists():
                self.console.print(f"{label + ':':<18}{folder.path / name}", soft_wrap=True, highlight=False)
