"""`branchgrpo status`: the state of runs, from their folders and from the controllers that answer.

Every answer has a time limit, even if a disk, a host or a Ray cluster hangs.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from urllib.request import ProxyHandler, build_opener

import psutil

from ...proto.errors import InputError
from ..on_ray.address import HERE, RAY_ADDRESS, nodes_here
from ..on_ray.run_address import RunAddress
from ..run.driver_lock import driver_of
from ..run.state import ENDED, read_state, resume_command

Result = TypeVar("Result")
HTTP_SECONDS = 1.5
"""Maximum seconds for a controller's answer."""
ALL_SECONDS = 4.4
"""Maximum seconds that a command asks, from its start; printing takes a moment too."""
TAIL_BYTES = 2**18
TYPICAL = 10
"""Iterations whose median tells how long one takes."""


@dataclass
class RunStatus:
    """The status of a run. Times are Unix seconds."""

    name: str
    folder: str | None
    """None for a run of which only a cluster tells."""
    state: str
    """`starting`, `running`, `recovering`, `stopping`, `finished`, `stopped`, `failed`, `lost` (its driver died) or
    `unknown` (run by a version that didn't tell)."""
    since: float | None = None
    doing: str = ""
    error: str | None = None
    driver: str | None = None
    iteration: int = 0
    iterations: int | None = None
    iteration_ended: float | None = None
    checkpoint: int | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    """Mean rewards of the newest iteration's leaves."""
    held_out: dict[str, float] = field(default_factory=dict)
    """Those of the newest evaluation."""
    held_out_iteration: int | None = None
    seconds_per_iteration: float | None = None
    seconds_left: float | None = None
    recoveries: int = 0
    resumed: int = 0
    disk_free: int | None = None
    """Bytes that are free on the disk of the run folder."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Settings that were changed when the run was resumed."""
    command: str | None = None
    """The command that continues a run which ended before its last iteration."""
    controller: dict[str, Any] | None = None
    """The report of the run's controller on Ray about its processes."""
    unreachable: str | None = None
    """Why the controller gives no report."""

    @property
    def live(self) -> bool:
        """Whether its driver is at work."""
        return self.state in ("starting", "running", "recovering", "stopping")


def status_of(folder: Path) -> RunStatus:
    """The status of the run in a folder, without its controller's."""
    recorded, seen = read_state(folder), driver_of(folder)
    run = RunStatus(str(recorded.get("name", folder.name)), str(folder), "unknown")
    if seen and seen.alive:
        # What an earlier driver wrote isn't about this one.
        mine = recorded.get("pid") == seen.driver.pid and recorded.get("state") not in ENDED
        run.state, run.since = (recorded["state"], recorded["since"]) if mine else ("starting", seen.driver.since)
        run.driver = str(seen.driver)
    elif recorded.get("state") in ENDED:
        run.state, run.since = recorded["state"], recorded["since"]
    elif recorded or seen:
        run.state, run.since = "lost", seen.last_seen if seen else recorded["since"]
    elif (folder / "summary.json").is_file():
        run.state, run.since = "finished", (folder / "summary.json").stat().st_mtime
    if run.live:
        run.doing = recorded.get("doing", "")
    run.error = recorded.get("error")
    run.iterations = recorded.get("iterations")
    run.recoveries, run.resumed = recorded.get("recoveries", 0), max(0, recorded.get("drivers", 1) - 1)
    with suppress(OSError):
        run.disk_free = shutil.disk_usage(folder).free
    run.changes = _lines(folder / "changes.jsonl")
    checkpoints = [path.name.removeprefix("iteration-") for path in (folder / "checkpoints").glob("iteration-*")]
    run.checkpoint = max((int(number) for number in checkpoints if number.isdecimal()), default=None)
    _add_figures(run, _lines(folder / "metrics.jsonl"), _lines(folder / "evaluations.jsonl"))
    if run.state in ("stopped", "failed", "lost"):
        run.command = resume_command(folder)
    return run


def _add_figures(run: RunStatus, metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> None:
    with suppress(KeyError, TypeError):  # lines of another version
        if metrics:
            newest = metrics[-1]
            run.iteration, run.iteration_ended = newest["iteration"], newest["started"] + newest["seconds"]
            run.rewards = {name: values["mean"] for name, values in newest["rewards"].items()}
            run.seconds_per_iteration = median(line["seconds"] for line in metrics[-TYPICAL:])
            if run.live and run.iterations:
                run.seconds_left = (run.iterations - run.iteration) * run.seconds_per_iteration
        if evaluations:
            others = ("iteration", "made_with")
            run.held_out = {name: mean for name, mean in evaluations[-1].items() if name not in others}
            run.held_out_iteration = evaluations[-1]["iteration"]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The last lines of a file of JSON lines; without those that can't be read."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            if isinstance(value := json.loads(line), dict):
                found.append(value)
    return found


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
    except (OSError, ValueError) as error:
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
            if Path(run).is_dir() or os.sep in run:
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
