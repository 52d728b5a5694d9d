"""The HTTP server under the application: uvicorn, with limits on connections and headers.

Ray Serve's proxy has no such limits: a header of 200 MB from any client kept it busy until it was taken for dead.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..proto.addresses import bound, written
from ..proto.errors import InputError

HEAD_BYTES = 32 * 2**10
"""The most that request line and headers may take."""
IDLE_SECONDS = 10.0
"""Connections on which no request is being answered are closed after this time to twice this time."""


class Connection(H11Protocol):
    """A connection that is closed when no request comes of it: neither a head nor an unwanted body may drip in."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look(None)

    def _look(self, seen: tuple[object, bool] | None) -> None:
        if self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and seen == (self.cycle, idle):
            self.transport.abort()
        else:
            self.loop.call_later(IDLE_SECONDS, self._look, (self.cycle, idle))


def check_reach(host: str, token: str | None) -> None:
    """Raises InputError for a host that others reach, if there is no token that they would have to know."""
    try:
        private = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        private = False
    if token is None and not private:
        raise InputError(
            f"--host is '{host}', which others can reach; set BRANCHGRPO_TOKEN (or --token-file) so that only those "
            "who know the token are answered, or listen on 127.0.0.1"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises InputError if it can't be had."""
    try:
        listener = bound(host, port, listening=True)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--port is {port}, which can't be used on --host '{host}': {reason}") from error
    # Connections inherit it. Without it the body of an answer waits 40 ms for the client to acknowledge its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """The address of what listens on a host."""
    return f"http://{written(host, listener.getsockname()[1])}"


async def answer(app: FastAPI, listener: socket.socket, stopped: Callable[[], bool]) -> None:
    """Answer HTTP with `app` until `stopped` is true, which the caller's handlers of signals see to."""
    answering = server(app)
    serving = asyncio.create_task(answering.serve(sockets=[listener]))
    while not stopped() and not serving.done():
        await asyncio.sleep(0.2)
    answering.should_exit = True
    await serving


class Server(uvicorn.Server):
    """A server that leaves signals to the process in which it runs."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(app: FastAPI) -> uvicorn.Server:
    """A server that answers HTTP with `app`, on the sockets that its `serve` is given."""
    return Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=int(IDLE_SECONDS),
            timeout_graceful_shutdown=10,
        )
    )
