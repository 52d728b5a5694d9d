"""Spans of work: who computed, moved data or waited, and when.

Code anywhere says `with span("forward", rows=8): ...`. Where `start_tracing` was called, every span becomes a line of
JSON in a file of this process; elsewhere it is nothing. `branchgrpo trace` reads the files.
"""

import atexit
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import INFO, LogRecord, getLogger
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

FILE_BYTES = 16_000_000
"""A process keeps its newest spans, in two files of at most this size."""

_process: dict[str, str] = {}
_measures_cpu = True
_queue: QueueHandler | None = None
_listener: QueueListener | None = None


class _SpanFile(RotatingFileHandler):
    def handleError(self, record: LogRecord) -> None:  # noqa: N802
        """Drop what can't be written, to a full disk say: the run needs no spans."""


def start_tracing(folder: Path | None, component: str, pool: str, *, several_at_once: bool = False) -> None:
    """Write the spans of this process into `folder` from now on, in a background thread; nowhere if that is None.

    Spans have the CPU seconds of the process, unless it does `several_at_once`.

    A folder that can't be written to is warned of, and nothing is traced. It is made, what it lies in isn't: on a node
    that doesn't share the run folder spans would be written where nobody reads them.
    """
    global _queue, _listener, _measures_cpu
    stop_tracing()
    _measures_cpu = not several_at_once
    if folder is None:
        return
    process = f"{pool} {socket.gethostname()}:{os.getpid()}"
    _process.update(component=component, pool=pool, process=process)
    path = folder / f"{process.replace(' ', '-').replace(':', '-')}.jsonl"
    try:
        folder.mkdir(exist_ok=True)
        file = _SpanFile(path, maxBytes=FILE_BYTES, backupCount=1)
    except OSError as error:
        getLogger(__name__).warning("%s is not traced: %s", process, error)
        return
    spans: SimpleQueue[LogRecord] = SimpleQueue()
    _listener = QueueListener(spans, file)
    _listener.start()
    _queue = QueueHandler(spans)


def process_name() -> str:
    """How the spans of this process name it."""
    return _process["process"]


@atexit.register
def stop_tracing() -> None:
    """Write what is left, and trace no more."""
    global _queue, _listener
    listener, _listener, _queue = _listener, None, None
    if listener:
        listener.stop()
        for handler in listener.handlers:
            with suppress(OSError):
                handler.close()


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[None]:
    """Record the time spent inside the block; `attributes` are JSON values."""
    if not _queue:
        yield
        return
    start, began, worked = time.time(), time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        end = start + time.perf_counter() - began
        if queue := _queue:
            cpu = time.process_time() - worked if _measures_cpu else None
            times = {"start": start, "end": end, "cpu": cpu}
            line = json.dumps({**_process, "name": name, **times, "attributes": attributes})
            queue.emit(LogRecord("", INFO, "", 0, line, None, None))
