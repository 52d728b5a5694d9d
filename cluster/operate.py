"""What a run on Ray tells and takes from outside: its HTTP server, and the commands `status` and `scale`."""

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import prometheus_client
import ray
import uvicorn
from fastapi import FastAPI
from ray.exceptions import ObjectLostError, RayActorError, RayError

from ..proto.errors import InputError, ProcessLost
from ..proto.metrics import ExporterDirectory, listening
from ..reward_service.client import cause_of
from .connect import named_controller, visiting
from .whereabouts import Whereabouts

Result = TypeVar("Result")
LOST = (RayActorError, ObjectLostError)
"""What Ray raises when a process died, or its node with all that lay there."""


class Watched(Protocol):
    """What an HTTP server shows."""

    exporters: ExporterDirectory
    server: "asyncio.Task[None] | None"

    async def status(self) -> dict[str, Any]: ...


async def serve_http(
    controller: Watched,
    metrics_host: str | None,
    node: str,
    port: int,
    registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY,
) -> str:
    """Serve `/sd` (Prometheus' HTTP service discovery), `/metrics` and `/status`; returns `host:port`.

    It listens on the address `node`, or on `metrics_host`. With port 0 a free one is taken. Raises InputError if the
    port can't be had.
    """
    host, reached_at = listening(metrics_host, node)
    app = FastAPI(title="BranchGRPO run", docs_url=None, redoc_url=None)  # whose pages need the internet

    @app.get("/sd")
    async def discovery() -> list[dict[str, object]]:
        """Every live metrics exporter of the run."""
        return controller.exporters.targets()

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """Iterations, phase and processes."""
        return await controller.status()

    app.mount("/metrics", prometheus_client.make_asgi_app(registry))
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise _port_refused(host, port, error) from error
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    server.capture_signals = _no_signals  # type: ignore[method-assign]  # they are Ray's in an actor
    controller.server = asyncio.create_task(server.serve(sockets=[listener]))
    address = f"{reached_at}:{listener.getsockname()[1]}"
    controller.exporters.keep(address, "controller")
    return address


def reserve_port(host: str, port: int, seconds: float) -> socket.socket:
    """A socket that holds a port of this machine (0: a free one): the system gives it to nobody who doesn't ask for it
    by its number, and one process of ours may listen there.

    Waits, for so many seconds at most, until nobody listens there any more. Raises InputError if it can't be had.
    """
    limit = time.monotonic() + seconds
    while True:
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, port))
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() > limit:
                raise _port_refused(host, port, error) from error
            time.sleep(0.2)
        else:
            return held


def _port_refused(host: str, port: int, error: OSError) -> InputError:
    return InputError(
        f"logging.metrics_port is {port} and logging.metrics_host '{host}', which can't be had: {error.strerror}"
    )


@contextmanager
def _no_signals() -> Iterator[None]:
    yield


def call_controller(where: Whereabouts, method: str, *arguments: Any) -> Any:
    """What a method of a run's controller returns, which `find_ray` has found. Raises InputError if there is none."""
    with visiting(where.address):
        controller = named_controller(where.run)
        return unwrapped(lambda: ray.get(getattr(controller, method).remote(*arguments)))


def unwrapped(call: Callable[[], Result]) -> Result:
    """What `call` returns. An exception of another process is raised as it was there.

    Raises ProcessLost for a process that died, or what it held.
    """
    try:
        return call()
    except RayError as error:
        cause = cause_of(error)
        if isinstance(cause, LOST):
            facts = str(cause).split("The actor is dead because")[0]
            raise ProcessLost(f"a process of the run was lost: {' '.join(facts.split())[:300]}") from error
        raise cause from error


def replica_counts(options: Sequence[str]) -> dict[str, int]:
    """Reward -> number of replicas, from `ocr=2`. Raises InputError for anything else."""
    counts = {}
    for option in options:
        name, equals, count = option.partition("=")
        if not equals or not count.isdecimal():
            raise InputError(f"--reward is '{option}'; write name=count, such as ocr=2")
        counts[name] = int(count)
    return counts
