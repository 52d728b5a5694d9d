"""A real run under faults: a process that is submitted again when it is killed, and what can be seen of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...cluster.on_ray.run_address import RunAddress
from ...cluster.run.folder import RunFolder
from ...proto.errors import RunFailed
from ..support.local_cluster import Nodes, free_port, wait_until

BRANCHGRPO = (sys.executable, "-m", "branchgrpo")
RECOVERY_SECONDS = 400
"""A run that makes no progress for so long has failed."""


@dataclass
class Run:
    """A run as a separate process, which is submitted again when it is killed."""

    name: str
    folder: Path
    nodes: Nodes
    command: list[str]
    port: int
    """Port of the controller's HTTP server."""
    log: Path
    driver: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.submit()

    def submit(self) -> None:
        """Start its driver, again after it was killed."""
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                self.command, stdout=log, stderr=log, start_new_session=True, env=_environment()
            )

    def on_cluster(self, *arguments: str) -> str:
        """The output of a `branchgrpo` command about this run. Raises RunFailed if it fails."""
        command = [*BRANCHGRPO, *arguments, "--address", self.nodes.address]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        if done.returncode:
            raise RunFailed(f"{self.name}: {' '.join(arguments)}: {done.stderr[-3000:]}")
        return done.stdout

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold its driver within the block, for a command that takes longer than the iterations that are left."""
        self.driver.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.driver.send_signal(signal.SIGCONT)

    def workers(self) -> int:
        """Rollout workers that it has, or that start. Raises RunFailed if its controller hasn't its own port."""
        url = RunAddress.read(self.folder).http or ""
        if not url.endswith(f":{self.port}"):
            raise RunFailed(f"{self.name}: the controller is at {url}; its port is {self.port}")
        with urllib.request.urlopen(f"{url}/status", timeout=30) as answer:
            return len(json.load(answer)["pools"]["rollout_workers"])

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have `branchgrpo monitor` follow the run, which must end within the block, where Prometheus is installed.

        Raises RunFailed if it doesn't end with the run.
        """
        if shutil.which("prometheus") is None:
            yield
            return
        command = [*BRANCHGRPO, "monitor", str(self.folder), "--port", str(free_port())]
        told = self.log.with_suffix(".monitor")
        with told.open("w") as log:
            monitor = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            with self.held():  # a fault that ends the run mustn't come before the monitor has found it
                wait_until(
                    lambda: "Prometheus:" in told.read_text() or monitor.poll() is not None,
                    RECOVERY_SECONDS,
                    lambda: f"{self.name}: monitor hasn't started: {told.read_text()}",
                )
            yield
            ended = monitor.wait(60)
        finally:
            monitor.terminate()
        if ended or "the run has ended" not in told.read_text():
            raise RunFailed(f"{self.name}: monitor has ended with {ended}: {told.read_text()}")

    def lines(self) -> list[dict[str, Any]]:
        """The figures of its finished iterations."""
        with suppress(FileNotFoundError):
            return RunFolder(self.folder).lines("metrics")
        return []

    @property
    def done(self) -> int:
        """The newest finished iteration; 0 before the first has ended."""
        return max((int(line["iteration"]) for line in self.lines()), default=0)

    def made_again(self, before: int, since: float) -> bool:
        """Whether the iteration after `before` has ended since a moment, in Unix seconds."""
        ends = (line["started"] + line["seconds"] for line in self.lines() if line["iteration"] == before + 1)
        return any(end > since for end in ends)

    def until(self, reached: Callable[[], bool], what: str, seconds: float = RECOVERY_SECONDS) -> None:
        """Wait until `reached()`. Raises RunFailed, with the end of the log, if the run ends first or is late."""

        def failure() -> str:
            return f"{self.name}: {what}: exit status {self.driver.poll()}\n{self.log.read_text()[-3000:]}"

        def checked() -> bool:
            ended = self.driver.poll() is not None  # before what it has reached at last is looked at
            if not (so := reached()) and ended:
                raise RunFailed(failure())
            return so

        wait_until(checked, seconds, failure)


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "disabled"}
