"""log.txt in the run folder: the messages of the run and all output of its driver, with times.

The terminal shows less: a line for each event and each warning, and what a user's own code prints. Ray's messages and
the tracebacks of warnings are in the file alone.
"""

import contextlib
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...proto.logs import marked
from .terminal import LineStream

FILE = "log.txt"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
OF_PROCESS = re.compile(r"\((?P<process>[^()]*?pid=\d+[^()]*|raylet|gcs_server|autoscaler[^()]*)\) ?(?P<text>.*)")
"""A line of another process, as Ray prints it in the driver."""
REPEATED = re.compile(r" \[repeated \d+x across cluster\].*")
Show = Callable[[str, int], None]
"""Is called with a line for the terminal and its level of `logging`."""


class TextLog:
    """Appends lines to log.txt. Lines that can't be written, such as to a full disk, are dropped."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def add(self, text: str, level: int = logging.INFO) -> None:
        """Add lines, each with the time and the level."""
        head = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {logging.getLevelName(level):<7} "
        lines = "".join(f"{head}{line}\n" for line in ANSI.sub("", text).split("\n"))
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines)


@contextmanager
def logged_output(log: TextLog, show: Show) -> Iterator[None]:
    """Within the block all that this process prints and warns of goes to `log`, and what is worth it to `show`.

    Lines that Ray prints for other processes of the run are among them.
    """
    handler = _Warnings(log, show)
    root = logging.getLogger()
    root.addHandler(handler)
    printed = LineStream(lambda line: _printed(line, log, show), sys.stdout)
    warned = LineStream(lambda line: _told(line, log, show), sys.stderr)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(warned):
            yield
    finally:
        printed.finish()
        warned.finish()
        root.removeHandler(handler)


class _Warnings(logging.Handler):
    """Warnings of this process."""

    def __init__(self, log: TextLog, show: Show) -> None:
        super().__init__(logging.WARNING)
        self._log, self._show = log, show

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # whatever a library passes on is no reason to stop
            message = str(record.msg)
        text = f"{record.name}: {message}"
        if record.exc_info and record.exc_info[1]:
            text += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        self._log.add(text, record.levelno)
        if record.name.split(".")[0] != "ray":
            self._show(message, record.levelno)


def _printed(line: str, log: TextLog, show: Show) -> None:
    """A line on standard output: of this process, or of another one that Ray has collected."""
    line = ANSI.sub("", line).rstrip()
    if not line:
        return
    log.add(line)
    process = OF_PROCESS.fullmatch(line)
    if process is None:
        show(line, logging.INFO)
    elif "pid=" in process["process"]:
        show(REPEATED.sub("", process["text"]), logging.INFO)


def _told(line: str, log: TextLog, show: Show) -> None:
    """A line on standard error."""
    line = ANSI.sub("", line).rstrip()
    if not line:
        return
    process = OF_PROCESS.fullmatch(line)
    warning = marked(REPEATED.sub("", process["text"])) if process else None
    log.add(line, warning[0] if warning else logging.INFO)
    if warning:
        show(warning[2], warning[0])
