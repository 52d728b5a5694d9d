"""`branchgrpo study`: measures, tunes and runs the variants of a study. Ray Tune runs each trial, a run of its own."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

# Before Tune is imported: the runs write their own logs, in their own folders, and this process hears its own signals.
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints, whatever it is told

import ray
from ray import tune

from ...proto.atomic_files import must_be_makeable, write_text
from ...proto.recipe import dump_recipe
from ...proto.settings import RunSettings
from ..on_ray.calls import unwrapped
from ..on_ray.connect import connected
from ..on_ray.placement import demands
from ..run.driver_lock import driver_lock, driver_of
from ..run.own_modules import travelling
from ..run.preflight import check_here
from ..run.stop import Stopped, StopRequest
from ..study.curves import BROKEN_STATES
from ..study.file import Study
from ..study.shared_runs import FinishedRun, finished_runs, take_over
from ..study.timing import measured, to_measure
from ..study.trials import Trial, chosen, must_continue, trials, tuning_trials

RUN_ATTEMPTS = 3
"""Times that a run is begun, or continued, whose process was killed."""
LIGHT_CPUS = 0.001
"""CPUs of the process that drives a run on Ray."""
TRAIN = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # when the process above dies, should Ray leave it alone
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # Ray's processes block it, and pass that on
sys.argv[0] = "branchgrpo"
from branchgrpo.cluster.cli import main
main()
"""


def run_study(study: Study, address: str | None, console: Console) -> None:
    """Run what is missing of a study, on the Ray cluster at `address` or on one that is started for it.

    Runs that broke are left behind: their folders tell of it. Raises InputError for what can't be run, and Stopped
    after SIGTERM or Ctrl-C.
    """
    must_be_makeable(study.folder)
    for candidates in study.variants.values():
        for candidate in candidates:
            check_here(candidate.settings)
    study.folder.mkdir(parents=True, exist_ok=True)
    try:
        with StopRequest("at once").listening(), driver_lock(study.folder):
            modules = [path for own in study.variants.values() for path in travelling(own[0].settings)]
            with connected(address, list(dict.fromkeys(modules))):
                _measure(study, console)
                _tune_and_run(study, console)
    except Stopped as stopped:
        raise Stopped(stopped.signum, "stopped; the same command continues the study") from None


def _measure(study: Study, console: Console) -> None:
    """Measure seconds where there is room for a run, while nothing else of the study is at work."""
    todo = to_measure(study)
    if not todo:
        return
    needed = [resources_of(settings, study.file.resources, ray.cluster_resources()) for settings in todo]
    most = {name: max(each.get(name, 0.0) for each in needed) for each in needed for name in each}
    task = ray.remote(_measured).options(num_cpus=most.pop("CPU", 0), num_gpus=most.pop("GPU", 0), resources=most)
    result = task.remote(study, todo)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("measuring seconds per iteration", total=len(todo) * study.file.timing_rounds)
        while not ray.wait([result], timeout=1)[0]:
            progress.update(bar, completed=sum(len(measured(study, settings)) for settings in todo))
    unwrapped(lambda: ray.get(result))


def _measured(study: Study, todo: Sequence[RunSettings]) -> None:
    from ..study.measure import measure  # models are loaded there, not in the command's process

    measure(study, todo)


def _tune_and_run(study: Study, console: Console) -> None:
    tuned = {name: [run for _, runs in tuning_trials(study, name) for run in runs] for name in study.variants}
    must_continue(study)
    _run(study, "tuning", [run for name, runs in tuned.items() if not chosen(study, name) for run in runs], console)
    must_continue(study)  # with the values that are chosen now
    every = trials(study)
    _take_over(every, study.folder.parent, console)
    _run(study, "runs", every, console)


def _take_over(every: Sequence[Trial], studies: Path, console: Console) -> None:
    """Copy those of the trials that other studies have made."""
    others: list[FinishedRun] = []
    if any(trial.state == "not started" for trial in every):
        with console.status("reading the runs of other studies"):
            others = finished_runs(studies)
    for trial in every:
        if taken := take_over(trial, others):
            console.print(f"{trial.settings.name}: the same as {taken}", markup=False, highlight=False)


def _run(study: Study, what: str, every: Sequence[Trial], console: Console) -> None:
    """Run those of the trials that aren't finished, as many at once as there is room for."""
    todo = [trial for trial in every if not trial.finished]
    if not todo:
        return
    storage = study.folder / "tune"
    shutil.rmtree(storage, ignore_errors=True)  # all that matters is in the run folders
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(_trial, lambda config: tune.PlacementGroupFactory([config["run"]["resources"]])),
        param_space={"run": tune.grid_search([_config(study, trial) for trial in todo])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=most_at_once(todo, ray.cluster_resources()),
            trial_dirname_creator=lambda trial: trial.trial_id,
            reuse_actors=True,  # a process of Tune takes seconds to start
        ),
        run_config=tune.RunConfig(
            name=what,
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=RUN_ATTEMPTS - 1),
            callbacks=[_Ends(todo, console)],
            verbose=0,
        ),
    )
    try:
        with Live(get_renderable=lambda: _progress(what, every), console=console, refresh_per_second=1, transient=True):
            tuner.fit()
    except KeyboardInterrupt:
        _stop(todo, console)
        raise
    shutil.rmtree(storage, ignore_errors=True)


def _config(study: Study, trial: Trial) -> dict[str, Any]:
    """What a trial's process is given, as plain data. Writes the recipe."""
    settings = trial.settings
    recipe = study.folder / "recipes" / settings.runs.name / f"{settings.name}.yaml"
    write_text(recipe, dump_recipe(settings))
    return {
        "recipe": str(recipe),
        "folder": str(trial.folder.path),
        "address": ray.get_runtime_context().gcs_address if settings.execution == "ray" else None,
        "cwd": os.getcwd(),
        "resources": resources_of(settings, study.file.resources, ray.cluster_resources()),
    }


def resources_of(
    settings: RunSettings, given: Mapping[str, float] | None, cluster: Mapping[str, float]
) -> dict[str, float]:
    """What Ray reserves for the process of a run: what the study's file has `given`, or what the run needs of all that
    the cluster has. A resource that no node has yet is missing there."""
    if settings.execution == "ray":
        return {"CPU": LIGHT_CPUS}
    if given is not None:
        return dict(given)
    threads = settings.threads or 1
    gpu = settings.policy.device != "cpu" and cluster.get("GPU")
    return {"CPU": min(threads, cluster.get("CPU", threads))} | ({"GPU": 1} if gpu else {})


def most_at_once(todo: Sequence[Trial], cluster: Mapping[str, float]) -> int | None:
    """Runs on Ray for whose pools the cluster has room at the same time, at least one; None if Tune's own count of
    resources decides."""
    most = None
    for trial in todo:
        if trial.settings.execution == "ray":
            needed: dict[str, float] = {}
            for demand in demands(trial.settings):
                for name, amount in demand.each.items():
                    needed[name] = needed.get(name, 0.0) + demand.count * amount
            # Of 22 cores 10 runs may have 2.2 each, though 22 // 2.2 is 9.
            rooms = (int(cluster.get(name, 0.0) / amount + 1e-6) for name, amount in needed.items())
            room = min(rooms, default=1)
            most = max(1, min(room, most or room))
    return most


def _trial(config: dict[str, Any]) -> dict[str, Any]:
    """Train one run, in a process of its own. Runs in a process of Tune, on any node.

    A run that ended by itself with an error isn't repeated: it would end like that again. Raises RuntimeError if its
    process was killed.
    """
    given = config["run"]
    while (seen := driver_of(Path(given["folder"]))) and seen.alive:
        time.sleep(0.5)  # what a killed study has left comes to its checkpoint first
    address = ["--address", given["address"]] if given["address"] else []
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, "train", given["recipe"], *address],
        cwd=given["cwd"] if os.path.isdir(given["cwd"]) else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=False,
    )
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"the process of the run ended with {done.returncode}: {done.stderr[-2000:]}")
    return {"status": done.returncode, "error": done.stderr[-2000:] if done.returncode else ""}


class _Ends(tune.Callback):  # type: ignore[misc]
    """Prints a line for every run that has ended."""

    def __init__(self, todo: Sequence[Trial], console: Console) -> None:
        self._todo, self._console = {str(trial.folder.path): trial for trial in todo}, console

    def __reduce__(self) -> tuple[Any, ...]:
        return tune.Callback, ()  # Tune saves its callbacks, and a console can't be

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trial)

    def _tell(self, trial: Any) -> None:
        run = self._todo[trial.config["run"]["folder"]]
        error = (trial.last_result or {}).get("error", "").strip()
        last = f": {error.splitlines()[-1]}" if error else ""
        self._console.print(f"{run.settings.name}: {run.state}{last}", markup=False, highlight=False)


def _progress(what: str, every: Sequence[Trial]) -> Table:
    """The runs at work, and how many have ended."""
    states = [trial.state for trial in every]
    table = Table(
        what, "iteration", "held-out", title=f"{states.count('finished')} of {len(every)} finished", min_width=50
    )
    for trial, state in zip(every, states, strict=True):
        if state == "running":
            metrics, evaluations = trial.folder.lines("metrics"), trial.folder.lines("evaluations")
            rewards = [name for name in trial.settings.rewards if evaluations and name in evaluations[-1]]
            newest = ", ".join(f"{name} {evaluations[-1][name]:.3f}" for name in rewards)
            table.add_row(escape(trial.settings.name), f"{len(metrics)} of {trial.settings.iterations}", newest)
    if broken := sum(state in BROKEN_STATES for state in states):
        table.caption = f"{broken} broken"
    return table


def _stop(todo: Sequence[Trial], console: Console) -> None:
    """Have the runs at work stop with a checkpoint, those too that begin meanwhile, and wait for them.

    Those of other hosts get their signal when Ray ends the processes above them."""
    told: set[int] = set()
    with console.status("waiting for the runs to save checkpoints"):
        while at_work := _drivers_here(todo):
            for pid in at_work - told:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGTERM)
            told |= at_work
            time.sleep(0.2)


def _drivers_here(trials: Sequence[Trial]) -> set[int]:
    """The processes of this host that drive one of the runs."""
    seen = (driver_of(trial.folder.path) for trial in trials)
    return {one.driver.pid for one in seen if one and one.alive and one.driver.host == socket.gethostname()}
