"""The Prometheus exporter that every process of a run has.

Series are defined where they are counted (`metrics.py` of each folder). An exporter listens on a port of its own and
keeps telling the run's directory that it is alive, so that Prometheus finds it and nobody edits a list.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import prometheus_client

HEARTBEAT_SECONDS = 5.0
FORGET_SECONDS = 3 * HEARTBEAT_SECONDS
"""An exporter that hasn't been heard of for so long is gone."""


def start_exporter(host: str, register: Callable[[str], object]) -> str:
    """Serve this process's metrics on a free port of `host`; returns `host:port`.

    `register` is told the address now and every `HEARTBEAT_SECONDS`, from a thread of its own.
    """
    server, _ = prometheus_client.start_http_server(0, addr=host)
    address = f"{host}:{server.server_port}"

    def announce() -> None:
        while True:
            try:
                register(address)
            except Exception:  # the directory may be restarting, or gone with the run; the next beat tells
                logging.getLogger(__name__).debug("%s could not be registered", address, exc_info=True)
            time.sleep(HEARTBEAT_SECONDS)

    threading.Thread(target=announce, daemon=True, name="metrics heartbeat").start()
    return address


@dataclass
class ExporterDirectory:
    """Live exporters, in the form of Prometheus' HTTP service discovery."""

    run: str
    _heard: dict[str, tuple[float, dict[str, str]]] = field(default_factory=dict)

    def register(self, address: str, component: str, pool: str) -> None:
        """Note that the exporter at `address` is alive."""
        self._heard[address] = (time.monotonic(), {"run": self.run, "component": component, "pool": pool})

    def keep(self, address: str, component: str) -> None:
        """Note an exporter that lives as long as this directory, and belongs to no pool."""
        # Its series tell of pools: with a `pool` of its own Prometheus would rename theirs.
        self._heard[address] = (float("inf"), {"run": self.run, "component": component})

    def forget(self, address: str) -> None:
        self._heard.pop(address, None)

    def targets(self) -> list[dict[str, object]]:
        """One entry per live exporter: its address, and labels that say what it is."""
        return [{"targets": [address], "labels": labels} for address, labels in sorted(self._alive().items())]

    def processes(self) -> dict[str, int]:
        """How many live exporters each pool has."""
        return Counter(labels["pool"] for labels in self._alive().values() if "pool" in labels)

    def _alive(self) -> dict[str, dict[str, str]]:
        limit = time.monotonic() - FORGET_SECONDS
        self._heard = {address: heard for address, heard in self._heard.items() if heard[0] > limit}
        return {address: labels for address, (_, labels) in self._heard.items()}
