"""The Prometheus exporter of a process.

Series are defined where they are counted (`metrics.py` of each folder). An exporter listens on its own port and keeps
registering with the run's directory, so that Prometheus finds it and nobody edits a list.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import prometheus_client

from .addresses import written

HEARTBEAT_SECONDS = 5.0
FORGET_SECONDS = 3 * HEARTBEAT_SECONDS
"""An exporter that hasn't been heard of for so long is gone."""


def listening(metrics_host: str | None, node: str) -> tuple[str, str]:
    """The address to listen on at the node with address `node`, and the address at which others reach it.

    `metrics_host` is the setting of this name.
    """
    host = metrics_host or node
    return host, node if host in ("0.0.0.0", "::") else host


def start_exporter(metrics_host: str | None, node: str, register: Callable[[str], object]) -> str:
    """Serve this process's metrics on a free port of the address `node`, or of `metrics_host`; returns `host:port`.

    `register` is called with the address now and every `HEARTBEAT_SECONDS`, from a background thread.
    """
    host, reached_at = listening(metrics_host, node)
    server, _ = prometheus_client.start_http_server(0, addr=host)
    address = written(reached_at, server.server_port)

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

    def silence(self, address: str) -> float:
        """Seconds since the exporter at `address` was last heard of; 0 if it never was."""
        heard, _ = self._heard.get(address, (float("inf"), {}))
        return max(0.0, time.monotonic() - heard)

    def forget(self, address: str) -> None:
        """Drop an exporter whose process has ended."""
        self._heard.pop(address, None)

    def targets(self) -> list[dict[str, object]]:
        """One entry per live exporter: its address, and labels that say what it is."""
        return [{"targets": [address], "labels": labels} for address, labels in sorted(self._alive().items())]

    def processes(self) -> dict[str, int]:
        """Pool -> its number of live exporters."""
        return Counter(labels["pool"] for labels in self._alive().values() if "pool" in labels)

    def _alive(self) -> dict[str, dict[str, str]]:
        limit = time.monotonic() - FORGET_SECONDS
        return {address: labels for address, (heard, labels) in self._heard.items() if heard > limit}
