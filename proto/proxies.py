"""Requests to local addresses bypass the environment's proxy."""

import os
import socket
from contextlib import suppress

VARIABLES = ("no_proxy", "NO_PROXY")
"""Libraries read one or the other."""


def spare_local_addresses() -> None:
    """Have the HTTP clients of this process, and of those that it starts, ask this machine without a proxy."""
    given = [name.strip() for variable in VARIABLES for name in os.environ.get(variable, "").split(",")]
    names = ",".join(dict.fromkeys(name for name in (*given, *_local_names()) if name))
    os.environ.update(dict.fromkeys(VARIABLES, names))


def _local_names() -> list[str]:
    """Names and addresses of this machine."""
    names = ["localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        outward.connect(("192.0.2.1", 9))  # sends nothing; the system chooses the address that it would send from
        names.append(outward.getsockname()[0])
    return names
