"""Submitting a run to a Ray cluster as a job, together with the package, the recipe and its prompts.

The package is sent as a folder. A wheel would be installed on every node with all its dependencies.
"""

import asyncio
import logging
import os
import re
import shlex
import shutil
import signal
import tempfile
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from ...proto.errors import InputError, RunFailed
from ...proto.recipe import save_recipe
from ...proto.settings import RunSettings
from ...rollout_workers.policies.load import EMBEDDED, find_policy
from ..on_ray.address import AUTH_MODE
from ..run.own_modules import own_modules
from ..run.preflight import check_recipe
from ..run.prompt_order import training_and_held_out

PACKAGE = Path(__file__).parents[2]
SHIPPED_FILES = (
    "*.py",
    "benchmarks/**/*.py",
    "cluster/*.py",
    "cluster/commands/*.py",
    "cluster/observability/grafana/**/*",
    "cluster/observability/prometheus/*.yaml",
    "cluster/on_ray/*.py",
    "cluster/plan/*.py",
    "cluster/run/*.py",
    "cluster/study/*.py",
    "cluster/view/*.py",
    "cluster/view/static/*",
    "cluster/view/templates/*",
    "learner/*.py",
    "proto/*.py",
    "recipes/*.txt",
    "recipes/*.yaml",
    "reward_service/*.py",
    "rollout_workers/**/*.py",
    "rollout_workers/glyphs/pipeline/**/*",
    "rollout_workers/shapes/pipeline/**/*",
)
"""The package's files. A checkout holds more, such as tests and runs."""
STOP_WAIT_SECONDS = 3600
"""Seconds that `ray job stop` gives a run to finish its iteration and write a checkpoint. Ray's default of 3 seconds
would kill it."""
EXIT_STATUS = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 128 + signal.SIGTERM}
"""Exit status of a command that followed a job to its end."""


def check(settings: RunSettings) -> None:
    """Raises InputError for what can be seen to be wrong from here. The cluster may hold more than this machine does.

    The run checks the rest when it starts there.
    """
    if settings.execution != "ray":
        raise InputError(f"execution is '{settings.execution}'; a run on a cluster needs execution 'ray'")
    if not settings.runs.is_absolute():
        raise InputError(
            f"runs is '{settings.runs}'; name an absolute folder that all nodes of the cluster share (runs=/...): the "
            "working directory of a job is deleted with it"
        )
    policy = settings.policy
    if policy.pretrained in EMBEDDED or Path(policy.pretrained).is_dir():
        find_policy(policy)
    elif not Path(policy.pretrained).is_absolute():
        raise InputError(
            f"policy.pretrained is '{policy.pretrained}'; it must be {', '.join(EMBEDDED)}, or an absolute path to "
            "a pipeline folder that the cluster sees"
        )
    start = policy.start_from
    for setting, path in {
        "policy.start_from.path": start and start.path,
        "policy.config": policy.config,
        "rollout.embeddings": settings.rollout.embeddings,
        **{f"rewards.{name}.instruction": reward.instruction for name, reward in settings.rewards.items()},
    }.items():
        if path and not Path(path).is_absolute():  # what is there has become absolute when the recipe was loaded
            raise InputError(f"{setting} is '{path}', which isn't there; name an absolute path that the cluster sees")
    check_recipe(settings)
    training_and_held_out(settings)


def stage_package(folder: Path) -> Path:
    """Copy this package to `folder`/branchgrpo, the name by which it is imported."""
    staged = folder / "branchgrpo"
    for pattern in SHIPPED_FILES:
        for file in PACKAGE.glob(pattern):
            if file.is_file():
                copy = staged / file.relative_to(PACKAGE)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    return staged


def connect(address: str) -> JobSubmissionClient:
    """The job server at `address`, http://HOST:PORT, which `use_dashboard` has found.

    Raises InputError if it takes no jobs.
    """
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # RAY_ADDRESS would win over the argument
    for quiet in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError, KeyError, AuthenticationError) as error:
        raise InputError(f"the Ray cluster at '{address}' accepts no jobs: {str(error).splitlines()[0]}") from error


def submit(
    client: JobSubmissionClient, settings: RunSettings, *, resume: bool = False, back_to: int | None = None
) -> str:
    """Submit the run, to start or to continue (from the checkpoint `back_to`, or the newest), and return the job's id.

    Raises RunFailed if the cluster doesn't take it.
    """
    job = f"branchgrpo-{re.sub(r'[^A-Za-z0-9_.-]+', '-', settings.name)}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as temporary:
        recipe = save_recipe(settings, Path(temporary) / "run")
        for module in own_modules(settings):  # all processes of a job import from its working directory
            copy = partial(shutil.copytree, dirs_exist_ok=True) if module.is_dir() else shutil.copyfile
            copy(module, recipe.parent / module.name)  # one may be called as the folder of the prompts is
        options = (["--resume"] if resume else []) + ([] if back_to is None else [f"--iteration={back_to}"])
        command = ["python", "-m", "branchgrpo", "train", recipe.name, *options]
        runtime_env: dict[str, Any] = {
            "py_modules": [str(stage_package(Path(temporary)))],
            "working_dir": str(recipe.parent),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)},
        }
        try:
            # With `exec` the run gets the signals of `ray job stop` itself, with no shell in between.
            return client.submit_job(
                entrypoint=f"exec {shlex.join(command)}", submission_id=job, runtime_env=runtime_env
            )
        except RuntimeError as error:
            raise RunFailed(f"the cluster didn't accept the job: {error}") from error


def follow(client: JobSubmissionClient, job: str) -> JobStatus:
    """Print a job's log until it ends, and return how it ended. Raises RunFailed if the connection is lost."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    try:
        asyncio.run(tail())
        status = client.get_job_status(job)
        if not status.is_terminal():
            raise RuntimeError(f"its log ended while it was {status}")
    except (OSError, RuntimeError, ClientError) as error:
        raise RunFailed(
            f"lost the connection to job {job} ({error}), which may be running; {hints(client, job)}"
        ) from error
    return status


def hints(client: JobSubmissionClient, job: str) -> str:
    """The commands to follow a job again, and to stop it."""
    address = f"--address {client.get_address()}"
    ray = f"{AUTH_MODE}=token ray" if os.environ.get(AUTH_MODE) == "token" else "ray"  # it doesn't look for itself
    return f"follow it with: {ray} job logs {job} --follow {address}\nstop it with: {ray} job stop {job} {address}"
