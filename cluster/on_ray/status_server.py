"""The HTTP server of a run on Ray: `/sd` for Prometheus, `/metrics` and `/status`."""

import asyncio
import errno
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import prometheus_client
from fastapi import FastAPI

from ...proto.addresses import bound, written
from ...proto.errors import InputError
from ...proto.exporter import ExporterDirectory, listening
from ...reward_service.http_server import server


async def serve_http(
    current: Callable[[], Awaitable[dict[str, Any]]],
    exporters: ExporterDirectory,
    metrics_host: str | None,
    node: str,
    port: int,
    registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY,
) -> tuple[str, asyncio.Task[None]]:
    """Serve `/sd` (Prometheus' HTTP service discovery) with `exporters`, and this server among them, `/metrics`, and
    `/status` with what `current` returns. Returns `host:port`, and the task that serves.

    It listens on the address `node`, or on `metrics_host`. With port 0 a free one is taken. Raises InputError if the
    port can't be had.
    """
    host, reached_at = listening(metrics_host, node)
    app = FastAPI(title="BranchGRPO run", docs_url=None, redoc_url=None)  # whose pages need the internet

    @app.get("/sd")
    async def discovery() -> list[dict[str, object]]:
        """Every live metrics exporter of the run."""
        return exporters.targets()

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """Iterations, phase and processes."""
        return await current()

    app.mount("/metrics", prometheus_client.make_asgi_app(registry))
    try:
        listener = bound(host, port, listening=True)
    except OSError as error:
        raise _port_refused(host, port, error) from error
    address = written(reached_at, listener.getsockname()[1])
    exporters.keep(address, "controller")
    return address, asyncio.create_task(server(app).serve(sockets=[listener]))


def reserve_port(host: str, port: int, seconds: float) -> socket.socket:
    """A socket that holds a port of this machine (0: a free one): the system gives it to nobody who doesn't ask for it
    by its number, and one process of ours may listen there.

    Waits, for so many seconds at most, until nobody listens there any more. Raises InputError if it can't be had.
    """
    limit = time.monotonic() + seconds
    while True:
        try:
            return bound(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > limit:
                raise _port_refused(host, port, error) from error
            time.sleep(0.2)


def _port_refused(host: str, port: int, error: OSError) -> InputError:
    return InputError(
        f"logging.metrics_port is {port} and logging.metrics_host '{host}', which can't be used: {error.strerror}"
    )
