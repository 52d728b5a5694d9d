"""Stopping a run from outside, with a checkpoint."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal

Mode = Literal["noted", "at once", "ignored"]


class Stopped(Exception):
    """The run has stopped as it was asked to; the message says where."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass
class StopRequest:
    """Set by SIGTERM, Ctrl-C, and what else is listened for. What a signal does depends on the mode of the moment.

    `noted`: the first one only sets `signum` and calls `asked`; who listens ends when it can. The second one raises
    KeyboardInterrupt. `at once`: the first one does. `ignored`: none does anything, for what must come to its end.
    """

    mode: Mode = "noted"
    signum: int | None = None
    asked: Callable[[], None] = lambda: None

    @contextmanager
    def listening(self, *also: int, deaf: tuple[int, ...] = ()) -> Iterator["StopRequest"]:
        """Within the block signals are noted; those named too. The ones in `deaf` do nothing, in child processes too.

        Raises Stopped for a KeyboardInterrupt that came from here.
        """

        def note(signum: int, frame: FrameType | None) -> None:
            if self.mode == "ignored":
                return
            first, self.signum = self.signum is None, self.signum or signum
            if self.mode == "at once" or not first:
                raise KeyboardInterrupt
            self.asked()

        before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT, *also)}
        before |= {signum: signal.signal(signum, signal.SIG_IGN) for signum in deaf}
        try:
            yield self
        except KeyboardInterrupt:
            if self.signum is None:
                raise
            raise Stopped(self.signum, "stopped") from None
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def during(self, mode: Mode) -> Iterator[None]:
        """Another mode within the block."""
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before
