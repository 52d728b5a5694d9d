"""Standard output and error of a command that continues when nobody reads them any more."""

import contextlib
import io
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class LastingStream(io.TextIOBase):
    """A text stream that nobody may read any more: what can't be written to it is dropped.

    A closed pipe, a terminal that is gone and a full disk are no errors. It keeps nothing back, so that nothing is
    left to fail when the process ends.
    """

    def __init__(self, stream: TextIO) -> None:
        """Writes to where `stream` goes, which must be a file of the system."""
        self._file, self._encoding = stream.fileno(), stream.encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def fileno(self) -> int:
        return self._file

    def isatty(self) -> bool:
        return os.isatty(self._file)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        left = memoryview(text.encode(self._encoding, "backslashreplace"))
        while left:
            try:
                left = left[os.write(self._file, left) :]
            except BlockingIOError:
                select.select([], [self._file], [])
            except OSError:
                break
        return len(text)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block `sys.stdout` and `sys.stderr` are lasting streams, where they are files of the system."""
    with contextlib.ExitStack() as stack:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            with contextlib.suppress(OSError, AttributeError):  # no file, as in tests; closed before we began
                stack.enter_context(redirect(LastingStream(getattr(sys, name))))
        yield


class LineStream(io.TextIOBase):
    """A text stream that calls `line` with every line that any thread writes to it, as a terminal would show it: of a
    progress bar, what it wrote last.

    Who asks for a file of the system, to write to it directly, gets that of `instead_of`.
    """

    def __init__(self, line: Callable[[str], None], instead_of: TextIO) -> None:
        self._line, self._begun, self._instead_of = line, "", instead_of
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._instead_of.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, begun = (self._begun + text).split("\n")
            self._begun = begun[begun.rstrip("\r").rfind("\r") + 1 :]
        for line in lines:
            self._line(line.rstrip("\r").rpartition("\r")[2])
        return len(text)

    def finish(self) -> None:
        """End the last line, if it hasn't been."""
        if self._begun:
            self.write("\n")
