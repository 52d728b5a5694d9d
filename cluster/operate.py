"""What a run on Ray tells and takes from outside: its HTTP server, and the commands `status` and `scale`."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prometheus_client
import ray
import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table

from ..proto.errors import InputError

if TYPE_CHECKING:
    from .controller import Controller

NAMESPACE = "branchgrpo"
"""Ray namespace in which controllers have their names."""
ADDRESS_FILE = "ray.json"
"""File of a run folder that says on which Ray the run goes on, and where its HTTP server is."""


def controller_name(run: str) -> str:
    """Name of a run's controller actor."""
    return f"controller-{run}"


async def serve_http(controller: "Controller", host: str, port: int) -> str:
    """Serve `/sd` (Prometheus' HTTP service discovery), `/metrics` and `/status`; returns `host:port`.

    With port 0 a free one is taken. Raises InputError if the port can't be had.
    """
    app = FastAPI(title="BranchGRPO run")

    @app.get("/sd")
    async def discovery() -> list[dict[str, object]]:
        """Every live metrics exporter of the run."""
        return controller.exporters.targets()

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """Iterations, phase and processes."""
        return await controller.status()

    app.mount("/metrics", prometheus_client.make_asgi_app())
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise InputError(f"logging.metrics_port is {port}, which can't be had on {host}: {error.strerror}") from error
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    server.capture_signals = _no_signals  # type: ignore[method-assign]  # they are Ray's in an actor
    controller.server = asyncio.create_task(server.serve(sockets=[listener]))
    address = f"{host}:{listener.getsockname()[1]}"
    controller.exporters.keep(address, "controller", "controller")
    return address


@contextmanager
def _no_signals() -> Iterator[None]:
    yield


def find_controller(run: str, address: str | None) -> Any:
    """The controller of `run` (a name, or a run folder), on the Ray at `address` or the one that the folder names.

    Connects to Ray. Raises InputError if there is none.
    """
    folder = Path(run)
    if (folder / "recipe.yaml").is_file():
        import json

        from .run_folder import RunFolder

        where = folder / ADDRESS_FILE
        if not where.is_file():
            raise InputError(f"{folder} isn't running on Ray (it has no {ADDRESS_FILE})")
        run, address = RunFolder.open(folder).settings.name, address or json.loads(where.read_text())["address"]
    try:
        ray.init(address=address or "auto", namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        raise InputError(f"no Ray can be reached at '{address or 'auto'}'; name the head with --address") from error
    try:
        return ray.get_actor(controller_name(run))
    except ValueError as error:
        running = [
            actor["name"].removeprefix(controller_name(""))
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["namespace"] == NAMESPACE
        ]
        raise InputError(
            f"no run '{run}' is going on there; there is {', '.join(sorted(running)) or 'none'}"
        ) from error


def show(status: dict[str, Any], console: Console) -> None:
    """A run's status as tables."""
    done = status["iterations"]
    console.print(
        f"{status['run']}: iteration {done['done']} of {done['of']} done, {status['phase']} {status['share']:.0%}, "
        f"weights version {status['weights_version']}, {status['trees_in_flight']} trees in flight",
        highlight=False,
    )
    table = Table("pool", "process", "node", "state")
    for pool in ("rollout_workers", "learner"):
        for process in status["pools"][pool]:
            table.add_row(pool, str(process["pid"]), process["node"], process["state"])
    for model, states in status["pools"]["rewards"].items():
        shown = ", ".join(f"{count} {state.lower()}" for state, count in states.items() if count)
        table.add_row(f"rewards.{model}", "replicas", "", shown)
    console.print(table)
