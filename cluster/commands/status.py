"""`branchgrpo status`: the state of runs, from their folders and from the controllers that answer.

Every answer has a time limit, even if a disk, a host or a Ray cluster hangs.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import ProxyHandler, build_opener

import psutil

from ...proto.errors import InputError
from ..on_ray.address import HERE, RAY_ADDRESS, nodes_here
from ..on_ray.run_address import RunAddress
from ..run.status import RunStatus, status_of

Result = TypeVar("Result")
HTTP_SECONDS = 1.5
"""Maximum seconds for a controller's answer."""
ALL_SECONDS = 4.4
"""Maximum seconds that a command asks, from its start; printing takes a moment too."""


def look(folder: Path) -> RunStatus:
    """The status of the run in a folder, and what its controller tells."""
    run = status_of(folder)
    if not run.live:
        return run
    try:
        url = RunAddress.read(folder).http
    except InputError:
        url = None
    if url is None:  # in one process, or about to start
        return run
    try:
        run.controller = within(HTTP_SECONDS, lambda: _asked(f"{url}/status"))
    except (OSError, ValueError, HTTPException) as error:  # another program's port by now, or one that just ends
        run.unreachable = f"its controller at {url} can't be asked ({getattr(error, 'reason', None) or error})"
    return run


def _asked(url: str) -> dict[str, Any]:
    # A proxy knows no way to the inside of a cluster.
    with build_opener(ProxyHandler({})).open(url, timeout=HTTP_SECONDS) as answer:
        return json.load(answer)


def look_at_all(runs: Path) -> list[RunStatus]:
    """Every run in a folder of runs, the newest last."""
    if not runs.is_dir():
        return []
    folders = sorted(path.parent for path in runs.glob("*/recipe.yaml"))
    return sorted((status_of(folder) for folder in folders), key=lambda run: run.since or 0.0)


def ask_cluster(address: str, run: str | None = None) -> list[RunStatus]:
    """The runs on the Ray cluster at an address, or one of them, as their controllers tell.

    Raises InputError if it doesn't answer, or has no such run.
    """
    # A separate process can be ended: calls to Ray can hang for minutes.
    command = [sys.executable, "-m", "branchgrpo.cluster.on_ray.cluster_runs", address, *([run] if run else [])]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_seconds_left())
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the Ray cluster at '{address}' gave no answer in {error.timeout:.1f} s") from error
    if asked.returncode:
        lines = asked.stderr.strip().splitlines()
        raise InputError(lines[-1] if lines else f"the Ray cluster at '{address}' gave no answer")
    found = []
    for name, told in json.loads(asked.stdout.splitlines()[-1]).items():
        status = RunStatus(name, None, "running", controller=told)
        if told:
            status.iteration, status.iterations = told["iterations"]["done"], told["iterations"]["of"]
        else:
            status.unreachable = "its controller gives no answer"
        found.append(status)
    return found


def _seconds_left() -> float:
    """Seconds left of the time that this command may take."""
    return max(0.0, ALL_SECONDS - (time.time() - psutil.Process().create_time()))


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of `call`. Raises InputError if it takes longer; the call is then abandoned."""
    result: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not result:
        raise InputError(f"no answer in {seconds:.1f} s: a disk or a host hangs")
    return result[0]


def find(run: str, runs: Path, address: str | None) -> RunStatus:
    """The status of a run, by its folder or its name, below `runs` or on the cluster at `address`."""

    def on_disk() -> RunStatus | RunAddress:
        if address is None:
            for folder in (Path(run), runs / run):
                if (folder / "recipe.yaml").is_file():
                    return look(folder)
            if Path(run).is_dir():
                raise InputError(f"{run} is no run folder (it has no recipe.yaml)")
        return RunAddress.find(run, address)

    found = within(_seconds_left(), on_disk)
    if isinstance(found, RunStatus):
        return found
    return ask_cluster(found.address or os.environ.get(RAY_ADDRESS) or HERE, found.run)[0]


def find_all(runs: Path, address: str | None) -> tuple[list[RunStatus], list[str]]:
    """All runs below `runs` and on the cluster, and what could not be asked.

    Without an address it is the cluster of RAY_ADDRESS or of this host, if there is one.
    """
    given, complaints, on_cluster = address or os.environ.get(RAY_ADDRESS), list[str](), list[RunStatus]()

    def ask() -> None:
        try:
            on_cluster.extend(ask_cluster(given or HERE))
        except InputError as error:
            complaints.append(str(error))

    asking = threading.Thread(target=ask, daemon=True)
    if given or nodes_here():
        asking.start()
    try:
        found = within(_seconds_left(), lambda: look_at_all(runs))
    except InputError as error:
        found = []
        complaints.append(f"{runs}: {error}")
    if asking.ident:
        asking.join()
    known = {run.name for run in found if run.live}
    return [*found, *(run for run in on_cluster if run.name not in known)], complaints


def as_json(runs: RunStatus | Sequence[RunStatus]) -> str:
    """One status as an object, or several as a list."""
    plain = asdict(runs) if isinstance(runs, RunStatus) else [asdict(run) for run in runs]
    return json.dumps(plain, indent=2)
