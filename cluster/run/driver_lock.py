"""One driver per run folder: a lock that ends with its holder, also on a shared file system.

The kernel gives up an flock when its holder dies, however it dies, and Linux carries it over NFS. Some file systems
have no locks, or keep them within one host. So the holder also touches the file every few seconds: a driver of another
host counts as alive as long as it does.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from ...proto.errors import InputError
from .state import Moment

FILE = "driver.lock"
BEAT_SECONDS = 2
SILENT_SECONDS = 20
"""Seconds without a touch after which a driver of another host counts as dead."""
PROBE_SECONDS = 2
"""Seconds in which a lock that only `driver_of` holds is free again."""
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


@dataclass(frozen=True)
class Driver:
    """The process that runs a run, or the last one that did."""

    host: str
    pid: int
    since: Moment
    boot: str
    """Identifies the running kernel: within it, the lock alone says who is alive."""

    @classmethod
    def here(cls) -> "Driver":
        """This process as a driver."""
        return cls(socket.gethostname(), os.getpid(), time.time(), _boot())

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"host {self.host}, process {self.pid}, since {since}"


DRIVER = TypeAdapter(Driver)


@dataclass(frozen=True)
class Sighting:
    """A run's driver, as its lock file describes it."""

    driver: Driver
    alive: bool
    last_seen: float
    """Unix seconds of its last sign of life."""


@contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which must exist.

    Raises InputError if another driver holds it, or if the folder can't be written to.
    """
    path = folder / FILE
    try:
        file = os.open(path, NEW_FILE, 0o644)
    except OSError as error:
        raise InputError(f"run folder {folder} can't be locked: {error.strerror}") from error
    try:
        works = _take(file, folder)
        before = _read(file)
        if before and (not works or before.boot != _boot()):
            _watch(file, folder, before)
        with suppress(OSError):  # a full disk: the lock is held all the same
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(asdict(Driver.here())).encode(), 0)
        if not works:
            time.sleep(BEAT_SECONDS)  # of two that came at the same time, the later one has written over the other
            if (now := _read(file)) and (now.host, now.pid) != (socket.gethostname(), os.getpid()):
                raise InputError(_refusal(folder, now))
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(file, ended), daemon=True, name="driver-lock")
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            with suppress(OSError):
                os.ftruncate(file, 0)
    finally:
        os.close(file)


def driver_of(folder: Path) -> Sighting | None:
    """The driver of a run folder, alive or dead; None if the last driver ended normally."""
    try:
        file = os.open(folder / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        driver, seen = _read(file), os.fstat(file).st_mtime
        if driver is None:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            alive = driver.boot != _boot() and time.time() - seen < SILENT_SECONDS
        except BlockingIOError:
            alive = True
        except OSError:
            alive = time.time() - seen < SILENT_SECONDS
        return Sighting(driver, alive, seen)
    finally:
        os.close(file)


def _take(file: int, folder: Path) -> bool:
    """Lock an open file; returns whether its file system has locks. Raises InputError if another holds it."""
    limit = time.monotonic() + PROBE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > limit:
                raise InputError(_refusal(folder, _read(file))) from None
            time.sleep(0.1)
        except OSError:
            return False


def _watch(file: int, folder: Path, driver: Driver) -> None:
    """Raises InputError if a driver that this host can't see still touches the file."""
    before, limit = os.fstat(file).st_mtime, time.monotonic() + SILENT_SECONDS
    if time.time() - before > 10 * SILENT_SECONDS:  # no clock is that wrong
        return
    while time.monotonic() < limit:
        time.sleep(0.5)
        with (folder / FILE).open("rb") as again:  # NFS asks its server when a file is opened
            if os.fstat(again.fileno()).st_mtime != before:
                raise InputError(_refusal(folder, driver))


def _refusal(folder: Path, driver: Driver | None) -> str:
    return (
        f"run folder {folder} is in use by another driver ({driver or 'which is just starting'}); stop that one first"
    )


def must_be_idle(folder: Path) -> None:
    """Raises InputError, naming the driver, if a driver that this host can see has the folder."""
    if (seen := driver_of(folder)) and seen.alive:
        raise InputError(_refusal(folder, seen.driver))


def _read(file: int) -> Driver | None:
    try:
        return DRIVER.validate_json(os.pread(file, 4096, 0))
    except ValueError:
        return None


def _beat(file: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(file)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
