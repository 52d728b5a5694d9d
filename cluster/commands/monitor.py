"""Prometheus and Grafana for a run: started with the right settings if they are installed."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ...proto.atomic_files import whole, write_text
from ...proto.errors import InputError
from ...proto.yaml12 import write_yaml
from ..on_ray.address import TOKEN, token_path
from ..on_ray.run_address import FILE, RunAddress
from ..run.driver_lock import driver_of
from ..run.stop import StopRequest

OBSERVABILITY = Path(__file__).parents[1] / "observability"
DASHBOARDS = OBSERVABILITY / "grafana" / "dashboards"
SCRAPE_SECONDS = 5
"""The rates in the dashboards need two scrapes; Grafana's data source must know this interval."""
CONFIG = "prometheus.yml"
LOOK_SECONDS = 1
"""Seconds between looks at where the run is."""
NO_PROMETHEUS = (
    "Prometheus isn't installed: `apt install prometheus`, or https://prometheus.io/download; then run this again. One "
    "that runs elsewhere needs what is in {config}"
)
NO_GRAFANA = (
    "Grafana isn't installed (https://grafana.com/grafana/download): import the dashboards in {dashboards} into one "
    "that is, or draw them: branchgrpo draw-dashboards {run} --prometheus {prometheus}"
)


def monitor(run: Path, port: int, grafana_port: int, ray_dashboard: str | None, console: Console) -> None:
    """Run Prometheus and Grafana for the run in a folder until it ends, or SIGTERM or Ctrl-C comes.

    Follows the run to a new address when it restarts or is submitted again. Raises InputError if it isn't running, if
    Prometheus isn't installed, or if a port can't be used.
    """
    http = RunAddress.of_folder(run).http or ""
    folder = run / "monitoring"
    config = write_config(folder, http, ray_dashboard)
    if not shutil.which("prometheus"):
        raise InputError(NO_PROMETHEUS.format(config=config))
    prometheus = f"http://127.0.0.1:{port}"
    must_be_free("--port", port)
    with StopRequest().listening(signal.SIGHUP) as stop, process(prometheus_command(port), folder=folder) as server:
        follower = Follower(run, http, server, lambda http: write_config(folder, http, ray_dashboard), console)
        console.print(f"Prometheus: {prometheus} (with its targets and alerts)")
        if program := shutil.which("grafana") or shutil.which("grafana-server"):
            must_be_free("--grafana-port", grafana_port)
            with process(*grafana_command(program, folder, prometheus, grafana_port)) as grafana:
                console.print(f"Grafana: http://127.0.0.1:{grafana_port}/dashboards")
                _wait([server, grafana], stop, follower)
        else:
            hint = NO_GRAFANA.format(dashboards=DASHBOARDS, run=run, prometheus=prometheus)
            console.print(hint, soft_wrap=True, highlight=False, markup=False)
            _wait([server], stop, follower)


def write_config(folder: Path, http: str, ray_dashboard: str | None) -> Path:
    """Write prometheus.yml and the alert rules into `folder`; returns where the first is."""
    write_text(folder / "alerts.yaml", (OBSERVABILITY / "prometheus" / "alerts.yaml").read_text())
    content = prometheus_config(http, ray_dashboard, _ray_token(folder) if ray_dashboard else None)
    path = folder / CONFIG
    write_text(path, write_yaml(content))
    return path


def prometheus_config(http: str, ray_dashboard: str | None = None, ray_token: Path | None = None) -> dict[str, Any]:
    """Settings of a Prometheus that scrapes a run, and Ray's own metrics beside it if its dashboard is named."""

    def job(name: str, url: str, **more: Any) -> dict[str, Any]:
        discovery = {"url": url, "refresh_interval": f"{SCRAPE_SECONDS}s", **more}
        return {"job_name": name, "http_sd_configs": [discovery]}

    jobs = [job("branchgrpo", f"{http}/sd")]
    if ray_dashboard:
        # The type is the default, which Prometheus 2.42 forgets in service discoveries.
        token = {"authorization": {"type": "Bearer", "credentials_file": str(ray_token)}} if ray_token else {}
        jobs.append(job("ray", f"{ray_dashboard.rstrip('/')}/api/prometheus/sd", **token))
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": jobs,
    }


def _ray_token(folder: Path) -> Path | None:
    """File with Ray's token, if there is one."""
    if token := os.environ.get(TOKEN):
        with whole(folder / "ray-token") as path:
            path.touch(mode=0o600)
            path.write_text(token)
        return (folder / "ray-token").resolve()
    path = token_path()
    return path.resolve() if path.is_file() else None


def prometheus_command(port: int) -> list[str]:
    """The command that starts Prometheus.

    Run it in the folder of the settings: Prometheus takes the path of the rules for a pattern.
    """
    return [
        "prometheus",
        f"--config.file={CONFIG}",
        "--storage.tsdb.path=prometheus",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]


def grafana_command(program: str, folder: Path, prometheus: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a Grafana that shows the dashboards to everybody on this machine."""
    environment = {
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_DATA": str((folder / "grafana").resolve()),
        "GF_PATHS_LOGS": str((folder / "grafana" / "log").resolve()),
        "GF_PATHS_PROVISIONING": str(OBSERVABILITY / "grafana" / "provisioning"),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_LOG_LEVEL": "warn",
        "BRANCHGRPO_DASHBOARDS": str(DASHBOARDS),
        "BRANCHGRPO_PROMETHEUS": prometheus,
    }
    home = os.environ.get("GF_PATHS_HOME", "/usr/share/grafana")
    server = [] if Path(program).name == "grafana-server" else ["server"]
    return [program, *server, f"--homepath={home}"], environment


def must_be_free(option: str, port: int) -> None:
    """Raises InputError for a port that something listens on."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputError(f"{option} is {port}, which can't be used: {error.strerror}; name another") from error


@contextmanager
def process(
    command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block. It has its own session, so signals to our process group don't reach it."""
    started = subprocess.Popen(command, env={**os.environ, **(environment or {})}, start_new_session=True, cwd=folder)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@dataclass
class Follower:
    """Keeps Prometheus at a run that may move."""

    run: Path
    http: str
    """The current address of the run."""
    prometheus: subprocess.Popen[bytes]
    write_config: Callable[[str], object]
    console: Console
    driver_lives: bool = True

    def look(self) -> bool:
        """Whether the run is running or may be submitted again. Prints changes."""
        if not (self.run / FILE).exists():
            self._say("the run has ended, and so do its servers")
            return False
        with suppress(InputError):  # it is being rewritten
            if (http := RunAddress.read(self.run).http) and http != self.http:
                self.http = http
                self.write_config(http)
                self.prometheus.send_signal(signal.SIGHUP)  # it reads its settings again
                self._say(f"the run has moved to {http}")
        driver = driver_of(self.run)
        lives = driver is not None and driver.alive
        if lives != self.driver_lives:
            self.driver_lives = lives
            self._say(
                "the run continues" if lives else "the run's driver is gone; waiting for the run to be submitted again"
            )
        return True

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def _wait(servers: list[subprocess.Popen[bytes]], stop: StopRequest, follower: Follower) -> None:
    """Wait until the run ends or a signal asks to stop. Raises InputError if a server ends by itself."""
    waiting = threading.Event()
    while stop.signum is None and follower.look():
        for server in servers:
            if server.poll() is not None:
                raise InputError("a server has ended by itself; it says why above")
        waiting.wait(LOOK_SECONDS)
