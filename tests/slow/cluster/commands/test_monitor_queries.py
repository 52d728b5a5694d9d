"""`branchgrpo monitor` and the dashboards: each of their queries finds data of a real run in a real Prometheus."""

import json
import math
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import matplotlib.pyplot as plt
import pytest
import requests
import torch
from branchgrpo.benchmarks.support.local_cluster import end, free_port, reachable, started
from branchgrpo.cluster.commands import draw_dashboards
from branchgrpo.cluster.commands.draw_dashboards import draw
from branchgrpo.cluster.commands.monitor import (
    process,
    prometheus_command,
    write_config,
)
from branchgrpo.cluster.on_ray import metrics as run
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.pages.dashboards import DASHBOARDS, dashboard
from branchgrpo.cluster.pages.metrics import EXPORTED_BY, series_name, series_of
from branchgrpo.cluster.run.iteration_trace import critical_path, read
from branchgrpo.cluster.run.loop import IterationReport
from branchgrpo.learner import metrics as learner
from branchgrpo.proto import usage
from branchgrpo.proto.prompts import read_prompts
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.settings import RunSettings
from branchgrpo.reward_service import metrics as scoring
from branchgrpo.rollout_workers import metrics as sampling
from prometheus_client.metrics import MetricWrapperBase
from support import Settings, command, until

QUERIES = [
    (panel["title"], target["expr"])
    for name in DASHBOARDS
    for panel in dashboard(name)["panels"]
    for target in panel.get("targets", [])
]
VARIABLES = {"$run": "run", "$reward": ".*", "$pool": ".+", "$__rate_interval": "20s", "$__range": "10m"}
ITERATIONS = 4
WITH_GPU = {"branchgrpo_gpu_seconds_total", "branchgrpo_utilisation_ratio", "branchgrpo_device_peak_flops"}
"""Series that are absent, or NaN, without a GPU that is known."""
OF_COUNTED_REWARDS = "leaf scored by"
"""Work that no query finds where the operations of no reward model are known, as here."""


class Prometheus:
    """A client of a Prometheus server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
                return list(json.load(answer)["data"]["result"])
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def ready(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.url}/-/ready", timeout=10).status == 200)
        except OSError:
            return False

    def now(self, query: str) -> list[float]:
        """Present values of a query's series."""
        return [float(series["value"][1]) for series in self.ask("query", query=query)]


@contextmanager
def monitored(run: Path, log: Path) -> Iterator[Prometheus]:
    """`branchgrpo monitor` for the run in a folder; with the block it gets Ctrl-C."""
    port = free_port()
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    follow = command("monitor", run, "--port", str(port))
    with log.open("w") as file, subprocess.Popen(follow, stdout=file, stderr=subprocess.STDOUT) as monitor:

        def ready() -> bool:
            assert monitor.poll() is None, log.read_text()
            return prometheus.ready()

        try:
            until(ready)
            yield prometheus
        finally:
            monitor.send_signal(signal.SIGINT)
            assert monitor.wait(60) == 0, log.read_text()
    assert not prometheus.ready()


@pytest.mark.timeout(600)
def test_monitor_shows_a_real_run_while_it_is_scaled(run_settings: Settings, tmp_path: Path, head: str) -> None:
    small = {"cpus": 0.5, "threads": 1}
    settings = run_settings(
        {
            "execution": "ray",
            "threads": 1,
            "prompts.per_iteration": 16,
            "evaluation.samples": 2,
            "pools": {
                "rollout_workers": {**small, "count": 2},
                "learner": small,
                "rewards": {"ocr": {**small, "replicas": 2}},
            },
        }
    )
    prompts = read_prompts(settings.prompts.train, "prompts.train")
    folder = settings.runs / settings.name
    save_recipe(settings, folder)

    with (
        closing(RayLoop(settings, folder, prompts, head)) as loop,
        monitored(folder, tmp_path / "monitor.log") as prometheus,
    ):
        start = time.time()
        until(lambda: components(prometheus) == {"controller": 1, "rollout": 2, "learner": 1, "reward": 2})
        # Rates miss what is counted before a series is first seen.
        assert prometheus.now(series_name(sampling.FORWARD_PASSES)) == [0, 0]
        assert prometheus.now(series_name(learner.ROWS_TRAINED)) == [0]
        reports = [loop.iterate(i) for i in range(1, ITERATIONS + 1)]
        end = time.time()
        until(lambda: len(prometheus.now(f"timestamp(up) > {end} and up == 1")) == 6)
        assert_components_export_their_own(prometheus)
        assert_counts_are_right(prometheus, settings, reports)
        assert prometheus.now("branchgrpo_diversity")[0] == pytest.approx(reports[-1].diversity)
        assert prometheus.now("branchgrpo_logprob_abs_diff_limit") == [settings.learner.clip_range / 10]

        evaluation = loop.evaluate(prompts[:3])
        loop.scale(3, {"ocr": 1})
        scaled = {"controller": 1, "rollout": 3, "learner": 1, "reward": 1}
        until(lambda: components(prometheus) == scaled)
        for number in range(ITERATIONS + 1, 2 * ITERATIONS + 1):
            loop.iterate(number)
        everyone = f"count(branchgrpo_tasks_total > 0 and timestamp(branchgrpo_tasks_total) > {end})"
        until(lambda: prometheus.now(everyone) == [3])
        assert prometheus.now("branchgrpo_evaluation_diversity") == [pytest.approx(evaluation.means["diversity"])]
        assert_queries_find_data(prometheus, start, time.time())
        assert_alert_rules_are_evaluated(prometheus)
        pictures = draw(draw_dashboards.Prometheus(prometheus.url), "run", start, time.time(), tmp_path / "pictures")
        assert [path.name for path in pictures] == sorted(f"{name}.png" for name in DASHBOARDS)
        assert all(plt.imread(path).std() > 0 for path in pictures)
    found = read(folder, ITERATIONS)
    assert {span.component for span in found.spans} == {"controller", "rollout", "reward", "learner"}
    rows = sum(span.attributes["rows"] for span in found.spans if span.name == "forward")
    assert rows == reports[-1].forward_passes
    steps = critical_path(found)
    assert steps[0].start == found.start
    assert steps[-1].end == found.end
    assert {"rollout_workers: forward", "ocr: score"} <= {step.name for step in steps}


def test_replicas_compute_what_their_pictures_take(tmp_path: Path) -> None:
    """Two replicas score 1 and 2 pictures a second of 7 operations each, and one's GPU could do 14 meanwhile."""
    (rate,) = (query for title, query in QUERIES if title == "FLOP/s by process" and OF_COUNTED_REWARDS in query)
    (share,) = (query for title, query in QUERIES if title == "Utilisation" and OF_COUNTED_REWARDS in query)
    labels = 'run="run", pool="hps", instance='
    work = {"leaf scored by hps": 7, "leaf scored by other": 99, "forward row": 5}
    series = {
        **{f'branchgrpo_work_flops{{run="run", work="{kind}"}}': f"{flops}x60" for kind, flops in work.items()},
        f'branchgrpo_leaves_scored_total{{{labels}"a"}}': "0+10x60",
        f'branchgrpo_leaves_scored_total{{{labels}"b"}}': "0+20x60",
        f'branchgrpo_scoring_batch_seconds_sum{{{labels}"a"}}': "0+2x60",
        f'branchgrpo_scoring_batch_seconds_sum{{{labels}"b"}}': "0+2x60",
        f'branchgrpo_device_peak_flops{{{labels}"a"}}': "70x60",
    }
    expected = {rate: {"a": 7.0, "b": 14.0}, share: {"a": 0.5}}
    asked = [
        {
            "expr": query.replace("$run", "run").replace("$__rate_interval", "60s"),
            "eval_time": "5m",
            "exp_samples": [
                {"labels": f'{{pool="hps", instance="{name}"}}', "value": value} for name, value in found.items()
            ],
        }
        for query, found in expected.items()
    ]
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "10s", "input_series": given, "promql_expr_test": asked}
    file = tmp_path / "queries.json"  # JSON is YAML
    file.write_text(json.dumps({"evaluation_interval": "10s", "tests": [test]}))
    told = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_ray_s_own_metrics_are_found_with_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("a" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    port, dashboard, agent = free_port(), free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie there: a short name
    head = started(
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--temp-dir={temporary}",
        "--num-cpus=1",
        "--object-store-memory=100000000",
    )
    try:
        assert reachable(dashboard)
        assert requests.get(f"{address}/api/prometheus/sd", timeout=30).status_code == 401
        server_port = free_port()
        prometheus = Prometheus(f"http://127.0.0.1:{server_port}")
        write_config(tmp_path, "http://127.0.0.1:9", address)
        with process(prometheus_command(server_port), folder=tmp_path):
            until(prometheus.ready)
            until(lambda: len(prometheus.now('up{job="ray"} == 1')) > 0)
            until(lambda: len(prometheus.now("ray_object_store_memory")) > 0)
    finally:
        end(head)
        shutil.rmtree(temporary, ignore_errors=True)


def components(prometheus: Prometheus) -> dict[str, int]:
    """How many processes of each component answer, of those that the service discovery names."""
    up = prometheus.ask("query", query='count by (component) (up{run="run"} == 1)')
    return {series["metric"]["component"]: int(series["value"][1]) for series in up}


def assert_alert_rules_are_evaluated(prometheus: Prometheus) -> None:
    with urllib.request.urlopen(f"{prometheus.url}/api/v1/rules", timeout=10) as answer:
        (group,) = json.load(answer)["data"]["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    firing = {
        alert["labels"]["alertname"]
        for rule in group["rules"]
        for alert in rule["alerts"]
        if alert["state"] == "firing"
    }
    assert firing <= {"BranchGRPODiskNearlyFull"}  # which may be so here


def assert_queries_find_data(prometheus: Prometheus, start: float, end: float) -> None:
    assert QUERIES
    for title, query in QUERIES:
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        if any(name in query for name in WITH_GPU) and not torch.cuda.is_available():
            continue
        if OF_COUNTED_REWARDS in query:
            continue
        found = prometheus.ask("query_range", query=query, start=start, end=end, step="5s")
        assert found, f"{title}: {query} finds nothing"
        for series in found:
            values = [float(value) for _, value in series["values"]]
            assert any(map(math.isfinite, values)), f"{title}: {query} is {values}"


def assert_components_export_their_own(prometheus: Prometheus) -> None:
    for components, module in EXPORTED_BY.items():
        for series in series_of(module):
            if "evaluation" in series.name:  # there has been none yet
                continue
            if series.name in WITH_GPU and not torch.cuda.is_available():
                continue
            name = f"{series.name}_sum" if series.kind == "histogram" else series.name
            found = prometheus.ask("query", query=f"count by (component) ({name})")
            exporters = {one["metric"]["component"] for one in found}
            assert exporters == set(components.split(", ")), name


def assert_counts_are_right(prometheus: Prometheus, settings: RunSettings, reports: list[IterationReport]) -> None:
    def counted(metric: MetricWrapperBase, of: str = "") -> float:
        return sum(prometheus.now(series_name(metric) + of))

    schedule, trees = settings.schedule.build(), ITERATIONS * settings.prompts.per_iteration
    assert counted(run.ITERATION) == counted(run.PUBLISHED_VERSION) == ITERATIONS
    assert counted(learner.UPDATES) == ITERATIONS * settings.learner.updates_per_iteration
    assert counted(sampling.FORWARD_PASSES) == trees * schedule.forward_passes
    assert counted(sampling.EDGES_SAMPLED) == trees * (schedule.nodes - schedule.roots)
    assert counted(sampling.LEAVES_SAMPLED) == counted(run.LEAVES_SCORED) == trees * schedule.leaves
    assert counted(scoring.LEAVES_SCORED) == trees * schedule.leaves
    assert counted(learner.EDGES_TRAINED) + counted(learner.EDGES_SKIPPED) == trees * schedule.trained_edges
    for phase in ("rollout", "learning"):
        told = sum(report.flops[phase] for report in reports)
        assert told > 0
        assert counted(run.FLOPS, f'{{phase="{phase}"}}') == pytest.approx(told)
    for phase in ("rollout", "scoring", "learning", "publishing"):
        told = sum(report.usage[phase].cpu_seconds for report in reports)
        assert counted(usage.CPU_SECONDS, f'{{phase="{phase}"}}') == pytest.approx(told)
    assert all(report.reward_usage == {"ocr": report.usage["scoring"]} for report in reports)
    assert counted(learner.ROWS_TRAINED) == sum(update.rows for report in reports for update in report.updates)
    for phase in run.PHASES:
        seconds = sum(report.seconds[phase] for report in reports)
        assert counted(run.PHASE_SECONDS, f'{{phase="{phase}"}}') == pytest.approx(seconds, abs=1e-3)
    for pool, count in {"rollout_workers": 2, "learner": 1}.items():
        assert counted(run.PROCESSES, f'{{pool="{pool}"}}') == count
    for nothing in (run.QUEUE_LENGTH, run.RESTARTS, run.RETRIES, scoring.FAILURES):
        assert counted(nothing) == 0
