"""The faults: processes and nodes that are killed or hang, a full disk and cluster, damaged checkpoints, bad scores."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...cluster.on_ray.names import application_name
from ...cluster.run.folder import RunFolder
from ...proto.errors import RunFailed
from ..support.local_cluster import Nodes, wait_until
from .outcome import CONTROLLER, check_gone
from .run import RECOVERY_SECONDS, Run
from .troubled_ocr import MISTAKES, PASSING_STATUSES

DISK_BYTES = 512 * 2**20
FULL_DISK_SECONDS = 4.0


@dataclass
class Chaos:
    """Brings about the faults."""

    nodes: Nodes
    faults: Path
    disk: Path | None
    chance: random.Random
    start: Callable[..., Run]
    """Starts a run of this name, with other settings if some are given."""
    struck: tuple[int, float] = (0, 0.0)
    """Iterations that were done when the last fault struck, and when that was, in Unix seconds."""

    def strike(self, run: Run, kind: str) -> None:
        """Bring a fault about."""
        self._note(run)
        self.kinds()[kind](run)

    def _note(self, run: Run) -> None:
        """Note that a fault strikes now: some have to wait for their moment."""
        self.struck = run.done, time.time()

    def kinds(self) -> dict[str, Callable[[Run], None]]:
        """Fault -> what brings it about."""
        kinds: dict[str, Callable[[Run], None]] = {
            "rollout worker killed": lambda run: self._signal(run, "RolloutActor", signal.SIGKILL),
            "rollout worker hangs": lambda run: self._signal(run, "RolloutActor", signal.SIGSTOP),
            "reward replica killed": lambda run: self._signal(
                run, f"ServeReplica:{application_name(run.name)}:ocr", signal.SIGKILL
            ),
            "learner rank killed": lambda run: self._signal(run, "LearnerActor", signal.SIGKILL),
            "controller killed": lambda run: self._signal(run, CONTROLLER, signal.SIGKILL),
            "worker node killed": lambda run: self.nodes.kill_one(self.chance),
            "scaled, then controller killed": self._scale_and_kill,
            "driver killed": self._kill_driver,
            "driver killed, cluster full": self._kill_driver_on_a_full_cluster,
            "checkpoint truncated": self._truncate,
            **{f"reward: {name}": lambda run, name=name: (self.faults / name).touch() for name in PASSING_STATUSES},  # type: ignore[misc]
            **{f"reward: {name}": lambda run, name=name: self._mistake(run, name) for name in MISTAKES},  # type: ignore[misc]
        }
        return {**kinds, "disk full": self._fill_disk} if self.disk else kinds

    def _signal(self, run: Run, title: str | tuple[str, ...], signum: signal.Signals) -> None:
        look, missing = partial(self.nodes.processes, title), f"there is no process {title}"
        found = wait_until(look, RECOVERY_SECONDS, lambda: missing)
        self._note(run)
        self.chance.choice(sorted(found, key=lambda process: process.pid)).send_signal(signum)

    def _kill_driver(self, run: Run) -> None:
        run.driver.kill()
        run.driver.wait()
        run.submit()

    def _scale_and_kill(self, run: Run) -> None:
        """The run has three workers then, also when it has been set up again."""
        with run.held():
            run.on_cluster("scale", run.name, "--rollout-workers", "3")
        done = run.done
        run.until(lambda: run.done > done, "an iteration with more workers")
        self._signal(run, CONTROLLER, signal.SIGKILL)
        killed = time.time()
        run.until(lambda: any(line["started"] > killed for line in run.lines()), "after the controller was killed")
        if (workers := run.workers()) != 3:
            raise RunFailed(f"{run.name} has {workers} rollout workers; it was scaled to 3")

    def _kill_driver_on_a_full_cluster(self, run: Run) -> None:
        """The reward models of another run that was killed, and the run's own, take all places there are."""
        with run.held():
            orphan = self.start(f"orphan {len(run.lines())}", "pools.rollout_workers.count=1")
            orphan.until(lambda: orphan.done >= 1, "the first iteration")
            orphan.driver.kill()
            orphan.driver.wait()
            if application_name(orphan.name) not in run.on_cluster("clean", str(orphan.folder.parent)):
                raise RunFailed(f"clean doesn't list what {orphan.name} has left")
        self._note(run)
        self._kill_driver(run)
        run.until(lambda: run.done > self.struck[0], "after the driver was killed")
        with run.held():
            run.on_cluster("clean", str(orphan.folder.parent), "--yes")
            check_gone(self.nodes, orphan.name, others=True)
        shutil.rmtree(orphan.folder)

    def _mistake(self, run: Run, name: str) -> None:
        """End the run by a reward's mistake, and submit it again, upon which it continues."""
        (self.faults / name).touch()
        ended = run.driver.wait(RECOVERY_SECONDS)
        if ended != 1 or "reward model 'ocr' gave no score" not in (told := run.log.read_text()):
            raise RunFailed(f"{run.name} has ended with {ended} by a reward's mistake: {told[-3000:]}")
        run.submit()

    def _truncate(self, run: Run) -> None:
        """Cut the newest checkpoint short, then lose the controller, so that the checkpoint is wanted."""
        folder = RunFolder(run.folder)
        run.until(lambda: len(folder.checkpoints()) > 1, "two checkpoints")
        newest = folder.checkpoint(folder.done)
        file = self.chance.choice(sorted(path for path in newest.rglob("*.*t*") if path.stat().st_size > 1))
        os.truncate(file, file.stat().st_size // 2)
        self._signal(run, CONTROLLER, signal.SIGKILL)

    def _fill_disk(self, run: Run) -> None:
        assert self.disk
        filler = self.disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        self._note(run)
        time.sleep(FULL_DISK_SECONDS)
        filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk that is soon full, or None where none can be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    folder.mkdir()
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
