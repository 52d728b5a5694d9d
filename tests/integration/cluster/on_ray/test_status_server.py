"""The port of a run's HTTP server."""

import socket
import threading
from contextlib import closing

import pytest
from branchgrpo.cluster.on_ray.status_server import reserve_port
from branchgrpo.proto.errors import InputError


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
