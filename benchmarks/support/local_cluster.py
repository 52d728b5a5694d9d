"""Nodes of a Ray cluster as processes of this machine, each ended by its process id."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

from ...proto.errors import RunFailed

Result = TypeVar("Result")
RAY = str(Path(sys.executable).with_name("ray"))
PORTS = range(20_000, 32_768)
"""Between those that Ray gives its workers and those that Linux gives who asks for any."""


def free_port() -> int:
    """A port of this machine on which nothing listens, and which nobody gets who asks the system, or Ray, for any."""
    for port in random.SystemRandom().sample(PORTS, 100):  # seeded, two processes would take the same ones
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(f"100 ports between {PORTS[0]} and {PORTS[-1]} are taken")


def started(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Run `ray start ARGUMENTS --block` in a new session."""
    return subprocess.Popen(
        [RAY, "start", "--block", "--disable-usage-stats", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )


def node_is_up(process: subprocess.Popen[bytes], seconds: float = 90) -> bool:
    """Whether the node that `started` began has all its agents, or has within so many seconds.

    Ray gives up a node whose agents don't tell their ports within 15 seconds, as on a busy machine.
    """
    temporary = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")

    def told(agent: str) -> bool:
        return any(temporary.glob(f"ray/session_*_{process.pid}/{agent}_port_*"))

    with suppress(RunFailed):
        wait_until(
            lambda: process.poll() is not None or (told("metrics_agent") and told("runtime_env_agent")),
            seconds,
            lambda: "its agents don't start",
        )
    return process.poll() is None


def end(process: subprocess.Popen[bytes]) -> None:
    """End a `ray start --block` and what it has started, which alone takes it half a minute."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
    process.wait()


def wait_until(reached: Callable[[], Result], seconds: float, failure: Callable[[], str]) -> Result:
    """What `reached()` returns as soon as that is true. Raises RunFailed that says `failure()` if it takes longer."""
    limit = time.monotonic() + seconds
    while not (found := reached()):
        if time.monotonic() > limit:
            raise RunFailed(failure())
        time.sleep(0.05)
    return found


def reachable(port: int, seconds: float = 60) -> bool:
    """Whether somebody listens on a port of this machine, or does within so many seconds."""

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with suppress(RunFailed):
        wait_until(listens, seconds, lambda: "nobody listens")
        return True
    return False


@contextmanager
def several_nodes(workers: int, store: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A cluster, until the block ends: its address, and its nodes for workers. These have the resource `work`, the head
    has `learn`, and every one a store of so many bytes."""
    port = free_port()
    size = ("--num-cpus=4", f"--object-store-memory={store}", "--include-dashboard=false")
    with ExitStack() as running:

        def add(is_up: Callable[[subprocess.Popen[bytes]], object], *options: str) -> subprocess.Popen[bytes]:
            for _ in range(3):  # on a busy machine Ray may give a node up
                process = started("--node-ip-address=127.0.0.1", *options)
                running.callback(end, process)
                if is_up(process):
                    return process
            raise RunFailed("a node of Ray didn't start")

        def has_agent(process: subprocess.Popen[bytes]) -> bool:
            there = partial(_children, process, "ray::DashboardAgent")
            wait_until(lambda: process.poll() is not None or there(), 90, lambda: "a node has no agent")
            return process.poll() is None

        add(node_is_up, "--head", f"--port={port}", '--resources={"learn": 100}', *size)
        # One after the other: two at once get in each other's way.
        nodes = [
            add(has_agent, f"--address=127.0.0.1:{port}", '--resources={"work": 1}', *size[:2]) for _ in range(workers)
        ]
        yield f"127.0.0.1:{port}", nodes


class Nodes:
    """A head and two nodes for workers, which come back when they were killed."""

    def __init__(self, environment: Mapping[str, str], places: int = 100) -> None:
        """`environment` is set for their processes, beside this one's own; `places` are for processes at the head."""
        self._environment = {**os.environ, **environment, "RAY_AUTH_MODE": "disabled"}
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.head = self._start(
            "--head", "--node-ip-address=127.0.0.1", f"--port={port}", f'--resources={{"head": {places}}}'
        )
        if not reachable(port):
            raise RunFailed("Ray's head didn't start")
        self.workers: list[subprocess.Popen[bytes]] = []
        for _ in range(2):  # one after the other: two at once get in each other's way
            self.workers.append(self._worker())
            wait_until(partial(_children, self.workers[-1], "ray::DashboardAgent"), 60, lambda: "a node didn't start")

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        size = ("--num-cpus=8", "--object-store-memory=200000000", "--include-dashboard=false")
        return started(*(size if "--head" in options else size[:2]), *options, environment=self._environment)

    def _worker(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", "--node-ip-address=127.0.0.1", '--resources={"work": 100}')

    def kill_one(self, chance: random.Random) -> None:
        """SIGKILL to the raylet of a worker node; a new node joins."""
        place = chance.randrange(len(self.workers))
        victim = self.workers[place]
        kill_raylet(victim)
        self.workers[place] = self._worker()
        end(victim)

    def processes(self, title: str | tuple[str, ...]) -> list[psutil.Process]:
        """Ray's worker processes whose title begins with `ray::` and `title`, or with one of them."""
        titles = (title,) if isinstance(title, str) else title
        wanted = tuple(f"ray::{name}" for name in titles)
        return [process for node in (self.head, *self.workers) for process in _children(node, wanted)]

    def close(self) -> None:
        for node in (*self.workers, self.head):
            end(node)


def kill_raylet(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the raylet of a node, with which all of its processes end."""
    for process in psutil.Process(node.pid).children():
        if process.name() == "raylet":
            process.kill()


def _children(node: subprocess.Popen[bytes], titles: str | tuple[str, ...]) -> list[psutil.Process]:
    """The processes of a node whose title begins so."""
    try:
        children = psutil.Process(node.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if title_of(child).startswith(titles)]


def title_of(process: psutil.Process) -> str:
    """A process's command line, or title; nothing if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
