"""A Ray to run on: a cluster that is there, or one that is started here and ended with what needed it."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from ..proto.errors import InputError
from .operate import NAMESPACE, must_listen

PROCESS_ENVIRONMENT = {
    # Threads that spin long while they wait would slow those of the other processes many times, and threads that never
    # spin would be half as fast.
    "GOMP_SPINCOUNT": "3000",
    "HF_HUB_OFFLINE": "1",
    # A process that was given no GPU sees none. Else all of them would take the node's first.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Of every process."""


def connect(address: str | None) -> bool:
    """Connect to the Ray at `address` (default: RAY_ADDRESS), or start one. Returns whether it was started here.

    Raises InputError if there is none at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        must_listen(address)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # A job may have set some of these variables itself: its values are in our environment, and so in what is given.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    # A signal to the whole process group is for the run, which then ends its Ray: the processes that are started here
    # inherit the mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set() if address else {signal.SIGTERM})
    try:
        ray.init(
            address=address or "local",
            namespace=NAMESPACE,
            runtime_env={"env_vars": {name: os.environ.get(name, v) for name, v in PROCESS_ENVIRONMENT.items()}},
            include_dashboard=None if address else False,
            logging_level="warning",
        )
    except (ConnectionError, ValueError) as error:
        raise InputError(f"no Ray can be reached at '{address}': {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for signum, handler in handlers.items():  # Ray takes SIGTERM for itself, and the run would miss it
            if callable(handler):
                signal.signal(signum, handler)
    return address is None


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """`connect`, and `ray.shutdown` at the end."""
    try:
        yield connect(address)
    finally:
        ray.shutdown()
