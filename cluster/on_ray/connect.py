"""Connecting to a Ray cluster, or starting one for this process and ending it afterwards."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from ...proto.errors import InputError
from .address import find_cluster, sockets_must_fit
from .internals import shut_down
from .names import controller_name, run_of

NAMESPACE = "branchgrpo"
"""Ray namespace in which the actors of runs have their names."""

PROCESS_ENVIRONMENT = {
    # Threads that spin long while they wait would slow those of the other processes many times, and threads that never
    # spin would be half as fast.
    "GOMP_SPINCOUNT": "3000",
    "HF_HUB_OFFLINE": "1",
    # A process that was given no GPU sees none. Else all of them would take the node's first.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment of every process of a run. Variables that are set already win."""


def unreachable(address: str | None, error: Exception) -> InputError:
    """The error for a Ray cluster that can't be reached at an address, or can't be started (None)."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(f"no Ray cluster can be {f'reached at {address!r}' if address else 'started'}: {reason[:300]}")


def connect(address: str | None, modules: Sequence[Path] = ()) -> bool:
    """Connect to the Ray at `address` (default: RAY_ADDRESS), or start one. Returns whether it was started here.

    To a cluster, `modules` (files and folders) are sent, for its processes to import. Here they are found as they are.

    Raises InputError if there is none at the address, or if none can be started.
    """
    address = find_cluster(address)
    if address is None:
        sockets_must_fit()
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # A job may have set some of these variables itself: its values are in our environment, and so in what is given.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    environment = {name: os.environ.get(name, value) for name, value in PROCESS_ENVIRONMENT.items()}
    runtime_env: dict[str, Any] = {}
    if address is None:  # Ray's processes inherit it: those that it starts ahead can be used, and none waits for agents
        os.environ.update(environment)
    else:
        runtime_env["env_vars"] = environment
        if modules:
            runtime_env["py_modules"] = [str(module) for module in modules]
    # A signal to the whole process group is for the run, which then ends its Ray: the processes that are started here
    # inherit the mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(
            address=address or "local",
            namespace=NAMESPACE,
            runtime_env=runtime_env,
            include_dashboard=None if address else False,
            logging_level="warning",
        )
    except Exception as error:  # so Ray raises where its processes take too long, as on a busy machine
        raise unreachable(address, error) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for signum, handler in handlers.items():  # Ray takes SIGTERM for itself, and the run would miss it
            if callable(handler):
                signal.signal(signum, handler)
    return address is None


@contextmanager
def visiting(address: str | None) -> Iterator[None]:
    """Within the block this process looks at the Ray at an address, which `find_ray` has found, and runs nothing there.

    Raises InputError if it can't be reached.
    """
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    except Exception as error:
        raise unreachable(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def connected(address: str | None, modules: Sequence[Path] = ()) -> Iterator[bool]:
    """`connect`, and `shut_down` at the end."""
    try:
        yield connect(address, modules)
    finally:
        shut_down()


def named_controller(run: str) -> Any:
    """The controller of a run on the Ray that this process is connected to. Raises InputError if there is none."""
    try:
        return ray.get_actor(controller_name(run), NAMESPACE)
    except ValueError as error:
        running = ", ".join(run_controllers()) or "none"
        raise InputError(f"no run '{run}' is in progress on this Ray cluster; runs in progress: {running}") from error


def run_controllers() -> dict[str, Any]:
    """Run -> its controller, of all runs on the Ray that this process is connected to. A long name is cut, with its
    digest."""
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if (run := run_of(actor["name"])) is not None:
            with suppress(ValueError):  # it has just ended
                found[run] = ray.get_actor(actor["name"], actor["namespace"])
    return dict(sorted(found.items()))
