"""Stopping a run from outside, with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop and has made a checkpoint."""

    def __init__(self, signum: int, iteration: int) -> None:
        super().__init__(f"stopped after iteration {iteration} with a checkpoint; go on with --resume")
        self.signum = signum


@dataclass
class StopRequest:
    """Set by SIGTERM or Ctrl-C; the run then ends after the present iteration. A second Ctrl-C ends it at once."""

    signum: int | None = None

    @contextmanager
    def listening(self, *also: int) -> Iterator["StopRequest"]:
        """Within the block signals are noted; those named too."""

        def note(signum: int, frame: FrameType | None) -> None:
            if self.signum is not None:
                raise KeyboardInterrupt
            self.signum = signum

        before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT, *also)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
