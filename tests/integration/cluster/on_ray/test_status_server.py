"""The port of a run's HTTP server, and what it answers there."""

import asyncio
import signal
import socket
import threading
from contextlib import closing
from typing import Any

import httpx
import pytest
from branchgrpo.cluster.on_ray.status_server import reserve_port, serve_http
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.exporter import ExporterDirectory, start_exporter


def listens_on(host: str) -> bool:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


needs_ipv6 = pytest.mark.skipif(not listens_on("::1"), reason="this machine has no IPv6")
HOSTS = [
    ("127.0.0.1", "10.0.0.9", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
    (None, "127.0.0.1", "127.0.0.1"),
    pytest.param("::1", "127.0.0.1", "[::1]", marks=needs_ipv6),
    pytest.param("::", "127.0.0.1", "127.0.0.1", marks=needs_ipv6),
    pytest.param("::", "::1", "[::1]", marks=needs_ipv6),
    pytest.param(None, "::1", "[::1]", marks=needs_ipv6),
]
"""`logging.metrics_host`, the node's address, and the host at which others reach what listens."""


@pytest.mark.parametrize(("host", "node", "reached_at"), HOSTS)
def test_others_reach_a_run_where_it_says(host: str | None, node: str, reached_at: str) -> None:
    async def asked() -> tuple[str, list[Any]]:
        async def status() -> dict[str, Any]:
            return {"iterations": 3, "signals": signal.getsignal(signal.SIGTERM) is before}

        with closing(reserve_port(host or node, 0, 0)) as held:
            port = held.getsockname()[1]
            address, serving = await serve_http(status, ExporterDirectory("run"), host, node, port)
            with pytest.raises(InputError, match=f"logging.metrics_port is {port} .*in use"):
                reserve_port(host or node, port, 0)
            async with httpx.AsyncClient(trust_env=False) as client:
                answers = [(await client.get(f"http://{address}/{page}")).json() for page in ("sd", "status")]
        serving.cancel()
        return address, answers

    before = signal.getsignal(signal.SIGTERM)
    address, (targets, status) = asyncio.run(asked())
    assert address.rpartition(":")[0] == reached_at
    assert [target["targets"] for target in targets] == [[address]]
    assert status == {"iterations": 3, "signals": True}


@pytest.mark.parametrize(("host", "node", "reached_at"), HOSTS)
def test_others_reach_an_exporter_where_it_says(host: str | None, node: str, reached_at: str) -> None:
    told: list[str] = []
    address = start_exporter(host, node, told.append)
    assert address.rpartition(":")[0] == reached_at
    assert "python_info" in httpx.get(f"http://{address}/metrics", trust_env=False).text
    assert set(told) <= {address}


def test_a_reserved_port_is_for_one_listener_alone() -> None:
    with closing(reserve_port("127.0.0.1", 0, 0)) as held:
        port = held.getsockname()[1]
        reserve_port("127.0.0.1", port, 0).close()
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
        listener = socket.create_server(("127.0.0.1", port))
        with pytest.raises(InputError, match=f"logging.metrics_port is {port} .*in use"):
            reserve_port("127.0.0.1", port, 0.5)
        threading.Timer(0.5, listener.close).start()
        reserve_port("127.0.0.1", port, 30).close()
