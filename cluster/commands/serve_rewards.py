"""The reward service by itself, over HTTP, for other trainers."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve as ray_serve
from rich.console import Console

from ...proto.errors import InputError
from ...proto.exporter import ExporterDirectory
from ...proto.scoring import MAX_BYTES, MAX_PICTURES, ScoreReply, ScoreRequest
from ...proto.settings import RunSettings
from ...reward_service.app import create_app
from ...reward_service.http_server import answer, check_reach, listen, url_of
from ...reward_service.parsing import Limits
from ..on_ray.calls import unwrapped
from ..on_ray.connect import NAMESPACE, connected
from ..on_ray.names import service_name
from ..on_ray.placement import check_room, free_nodes, reward_demands
from ..on_ray.reward_client import RewardClient
from ..on_ray.reward_deployment import RewardDeployment
from ..on_ray.status_server import serve_http
from ..run.own_modules import travelling
from ..run.stop import StopRequest


class RewardDirectory:
    """Keeps the list of the replicas' metrics exporters, as a run's controller does."""

    def __init__(self, name: str) -> None:
        self.exporters = ExporterDirectory(name)

    async def start(self, metrics_host: str | None, node: str, port: int) -> str:
        """Serve `/sd`; returns `host:port`."""
        address, self._server = await serve_http(self.status, self.exporters, metrics_host, node, port)
        return address

    def register(self, address: str, component: str, pool: str) -> None:
        """Take a replica's exporter at `host:port` into the list."""
        self.exporters.register(address, component, pool)

    async def status(self) -> dict[str, Any]:
        """Ray Serve's view of the models, as plain data."""
        status = await asyncio.to_thread(ray_serve.status)
        return {name: str(app.status) for name, app in status.applications.items()}


def serve(
    settings: RunSettings,
    console: Console,
    *,
    host: str,
    port: int,
    token: str | None,
    max_bytes: int,
    address: str | None,
) -> None:
    """Serve the recipe's rewards until SIGTERM, SIGHUP or Ctrl-C, to those who know the `token`, in requests of at most
    `max_bytes` and a proportional number of pictures.

    Raises InputError for models that can't be placed, when the port can't be had, or for a `host` that others reach
    without a token.
    """
    check_reach(host, token)
    modules = travelling(settings)
    with StopRequest().listening(signal.SIGHUP) as stop, listen(host, port) as listener, connected(address, modules):
        check_room(reward_demands(settings), free_nodes())
        with deployed(settings, service_name(settings.name), console) as (client, discovery):
            url = url_of(host, listener)
            console.print(f"rewards {', '.join(settings.rewards)} at {url}/v1/score", highlight=False, soft_wrap=True)
            console.print(
                f"documentation at {url}/docs, metrics' service discovery at {discovery}",
                highlight=False,
                soft_wrap=True,
            )
            asyncio.run(_answer(client, list(settings.rewards), token, max_bytes, listener, stop))


@contextmanager
def deployed(settings: RunSettings, name: str, console: Console) -> Iterator[tuple[RewardClient, str]]:
    """The recipe's reward models as the Serve application `name`: a client, and the address of `/sd`.

    Raises what loading a model raised.
    """
    directory = _start_directory(name)
    deployment = RewardDeployment(settings, name, (name, NAMESPACE))
    try:
        with console.status("loading reward models"):
            log, node = settings.logging, ray.util.get_node_ip_address()
            where = unwrapped(lambda: ray.get(directory.start.remote(log.metrics_host, node, log.metrics_port or 0)))
            deployment.start()
            client = deployment.client()
            asyncio.run(client.check())
        yield client, f"http://{where}/sd"
    finally:
        deployment.delete()
        ray.kill(directory)


async def _answer(
    client: RewardClient,
    rewards: list[str],
    token: str | None,
    max_bytes: int,
    listener: socket.socket,
    stop: StopRequest,
) -> None:
    async def score(request: ScoreRequest) -> ScoreReply:
        return await client.score(request.media, request.prompts, request.rewards, request.id)

    pictures, held = max(1, MAX_PICTURES * max_bytes // MAX_BYTES), max(512 * 2**20, 4 * max_bytes)
    app = create_app(score, rewards, Limits(pictures=pictures, bytes=max_bytes, held=held), token=token)
    await answer(app, listener, lambda: stop.signum is not None)


def _start_directory(name: str) -> Any:
    try:
        return ray.remote(RewardDirectory).options(name=name, num_cpus=0).remote(name)
    except ValueError as error:
        raise InputError(f"the rewards of '{name}' are being served on this cluster already (name=...)") from error
