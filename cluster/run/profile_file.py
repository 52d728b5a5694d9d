"""Profiling a run in one process: a file in its folder asks for it, and the run answers with another one.

The run looks for the file before each iteration, and removes it when it has answered. Both are unfinished files by
their names: what a killed command has left is swept away before the run continues.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ...proto.atomic_files import PARTIAL_PREFIX, write_new, write_text
from ...proto.errors import InputError, RunFailed
from ...proto.profiling import Component, ProfileOrder, ProfileRequest, ProfilerScope
from ...proto.settings import RunSettings
from .driver_lock import driver_of
from .phases import OwnTimeline
from .profiling import ENDED, Profiling, must_go_on, new_name
from .status import status_of

FILE = f"{PARTIAL_PREFIX}profile.json"
ANSWER = "order"
"""File among the traces, once all of them are there."""
POLL_SECONDS = 0.2
COMPONENTS = {"rollout": Component.ROLLOUT, "scoring": Component.REWARD, "learning": Component.LEARNER}
"""Phase of an iteration -> the component that does its work on Ray."""


@dataclass(frozen=True)
class RequestFile:
    """The content of the file that asks."""

    folder: str
    """Name of the folder of traces, beside the file. No two requests have the same."""
    request: ProfileRequest


ASKED, ORDER = TypeAdapter(RequestFile), TypeAdapter(ProfileOrder)


class ProfiledTimeline(OwnTimeline):
    """The phases of an iteration, profiled where there is an order for their component."""

    def __init__(self, order: Callable[[Component], ProfileOrder | None]) -> None:
        super().__init__()
        self._order = order

    @contextmanager
    def phase(self, name: str, **attributes: Any) -> Iterator[None]:
        order = self._order(COMPONENTS[name]) if name in COMPONENTS else None
        with ProfilerScope(order), super().phase(name, **attributes):
            yield


class FileProfiling(Profiling):
    """Takes up one request after the other, each when an iteration begins, and answers when its last one has ended."""

    def __init__(self, settings: RunSettings) -> None:
        self._file = settings.trace_folder / FILE if settings.trace_folder else None
        self._iterations = settings.iterations
        self._asked: RequestFile | None = None

    @contextmanager
    def iteration(self, number: int) -> Iterator[ProfiledTimeline]:
        """The timeline of an iteration, which is the block."""
        if not self.current and self._file and (asked := _read(self._file)):
            self._asked = asked
            self.current = asked.request.order(self._file.with_name(asked.folder), number - 1, self._iterations)
        yield ProfiledTimeline(lambda component: self.order(component, number))
        if self._file and self.current:
            if _read(self._file) != self._asked:
                self.drop()
            elif number >= self.current.last:
                self._answer(self._file, self.current)

    def drop(self) -> None:
        """Give up the request at work, if there is one; its command learns it from the missing file."""
        if self._file and self._asked and self.current:
            _remove(self._file, self._asked)
            shutil.rmtree(self.current.folder, ignore_errors=True)
            self.current = None

    def _answer(self, file: Path, order: ProfileOrder) -> None:
        try:
            write_text(order.folder / ANSWER, ORDER.dump_json(order).decode())
        except OSError as error:  # a full disk, say: the run needs no profile
            getLogger(__name__).warning("a profile can't be ended: %s", error)
            self.drop()
        else:
            file.unlink(missing_ok=True)
            self.current = None


def profile_in_one_process(run: Path, request: ProfileRequest) -> ProfileOrder:
    """Have the next iterations of a live run in folder `run` profiled; returns the order when they are over.

    Raises InputError if there are none, or if others are being profiled, and RunFailed if the run ends meanwhile.
    """
    status = status_of(run)
    if status.state == "running" and status.iterations is not None:
        begun = status.iteration if status.doing else status.iteration + 1
        must_go_on(min(begun, status.iterations), status.iterations)
    file, asked = run / "trace" / FILE, RequestFile(new_name(), request)
    traces = file.with_name(asked.folder)
    try:
        write_new(file, ASKED.dump_json(asked).decode())
    except FileExistsError:
        raise InputError(f"the run in {run} is being profiled already; ask again after that") from None
    try:
        while True:
            driver = driver_of(run)
            ended = not (driver and driver.alive and file.exists())
            if (traces / ANSWER).is_file():  # written before the file was removed
                return replace(ORDER.validate_json((traces / ANSWER).read_bytes()), folder=traces)
            if ended:
                raise RunFailed(ENDED)
            time.sleep(POLL_SECONDS)
    except BaseException:
        _remove(file, asked)
        shutil.rmtree(traces, ignore_errors=True)
        raise


def _read(file: Path) -> RequestFile | None:
    """What is asked for; None if nothing is, or nothing that can be read."""
    try:
        return ASKED.validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def _remove(file: Path, asked: RequestFile) -> None:
    """Remove the file, unless it is another request's."""
    if _read(file) == asked:
        file.unlink(missing_ok=True)
