"""The dashboard shows what a run exports: each of its queries finds data in a Prometheus that scrapes one."""

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from branchgrpo.cluster import metrics as run
from branchgrpo.cluster.boards import BOARDS, content
from branchgrpo.cluster.loop import IterationReport
from branchgrpo.cluster.prompts import prompts_of, read_prompts
from branchgrpo.cluster.ray_loop import RayLoop
from branchgrpo.cluster.series import EXPORTED_BY, series_name, series_of
from branchgrpo.learner import metrics as learner
from branchgrpo.proto.settings import RunSettings
from branchgrpo.reward_service import metrics as scoring
from branchgrpo.rollout_workers import metrics as sampling
from prometheus_client.metrics import MetricWrapperBase

FOLDER = Path(__file__).parents[2] / "cluster" / "grafana" / "dashboards"
FILES = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in BOARDS}
PANELS = [panel for board in FILES.values() for panel in board["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
SERIES = {series.name: series for module in EXPORTED_BY.values() for series in series_of(module)}
VARIABLES = {"$run": "run", "$reward": ".*", "$pool": ".+", "$__rate_interval": "15s", "$__range": "10m"}
ITERATIONS = 6
LEFT_OUT: set[str] = set()
"""Series that the dashboard doesn't show, on purpose."""


def test_the_committed_dashboards_are_those_of_the_code() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in BOARDS}
    for name in BOARDS:
        assert (FOLDER / f"{name}.json").read_text() == content(name), "run `make docs`"


def test_queries_name_series_that_exist_with_labels_that_they_have() -> None:
    for title, query in QUERIES:
        for name, matchers in re.findall(r"\b(branchgrpo_\w+|up)\{(.*?)\}", query):
            series = SERIES.get(re.sub("_(bucket|sum|count)$", "", name)) or SERIES.get(name)
            known = {"run", "component", "pool", "instance", *(series.labels if series else ())}
            assert series or name == "up", f"{title}: {name}"
            assert set(re.findall(r"(\w+)=~?", matchers)) <= known, f"{title}: {matchers}"


def test_every_series_is_shown() -> None:
    queries = " ".join(query for _, query in QUERIES)
    hidden = {name for name in SERIES if not re.search(rf"\b{name}(_bucket|_sum|_count)?\{{", queries)}
    assert hidden == LEFT_OUT


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_places_and_names_of_their_own(name: str) -> None:
    content = FILES[name]["panels"]
    assert max(Counter(panel["id"] for panel in content).values()) == 1
    assert max(Counter(panel["title"] for panel in content).values()) == 1
    for panel in content:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
    for one, other in combinations(content, 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{one['title']} lies on {other['title']}"
    for panel in (panel for panel in content if panel["type"] != "row"):
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
        assert max(Counter(target["refId"] for target in panel["targets"]).values()) == 1


def test_dashboards_lead_to_each_other_with_the_same_variables() -> None:
    for board in FILES.values():
        (link,) = board["links"]
        assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
        assert set(link["tags"]) <= set(board["tags"])
        variables = [variable["name"] for variable in board["templating"]["list"]]
        assert variables == ["datasource", "run", "pool", "reward"]
    assert len({board["uid"] for board in FILES.values()}) == len(BOARDS)


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

    def now(self, query: str) -> list[float]:
        """Present values of a query's series."""
        return [float(series["value"][1]) for series in self.ask("query", query=query)]

    def until(self, true: Callable[[], bool], seconds: float = 60) -> None:
        limit = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < limit, self.ask("query", query="up")
            time.sleep(0.5)


@contextmanager
def scraping(discovery: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes what the service discovery names, every second."""
    program = shutil.which("prometheus")
    assert program, "there is no prometheus; install Debian's package prometheus"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = folder / "prometheus.json"  # which is YAML
    discoveries = [{"url": discovery, "refresh_interval": "1s"}]
    job = {"job_name": "branchgrpo", "scrape_interval": "1s", "scrape_timeout": "1s", "http_sd_configs": discoveries}
    config.write_text(json.dumps({"scrape_configs": [job]}))
    process = subprocess.Popen(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]
    )
    prometheus = Prometheus(f"http://{address}")

    def ready() -> bool:
        assert process.poll() is None, "prometheus has ended"
        try:
            return bool(urllib.request.urlopen(f"{prometheus.url}/-/ready", timeout=10).status == 200)
        except OSError:
            return False

    try:
        prometheus.until(ready)
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_every_query_finds_data_of_a_real_run(
    run_settings: Callable[..., RunSettings], tmp_path: Path, head: str
) -> None:
    small = {"cpus": 0.5, "threads": 1}
    settings = run_settings(
        {
            "execution": "ray",
            "threads": 1,
            "prompts.per_iteration": 16,
            "pools": {"rollout_workers": {**small, "count": 2}, "learner": small, "rewards": {"ocr": small}},
        }
    )
    prompts = read_prompts(settings.prompts.train, "prompts.train")
    (tmp_path / "run").mkdir()
    with closing(RayLoop(settings, tmp_path / "run", head)) as loop:
        discovery = json.loads((tmp_path / "run" / "ray.json").read_text())["http"] + "/sd"
        with scraping(discovery, tmp_path) as prometheus:
            start = time.time()
            prometheus.until(lambda: len(prometheus.now("up == 1")) == 5)
            reports = [
                loop.iterate(i, prompts_of(i, prompts, settings.prompts.per_iteration, settings.seed))
                for i in range(1, ITERATIONS + 1)
            ]
            end = time.time()
            prometheus.until(lambda: len(prometheus.now(f"timestamp(up) > {end} and up == 1")) == 5)
            assert_queries_find_data(prometheus, start, time.time())
            assert_components_export_their_own(prometheus)
            assert_counts_are_right(prometheus, settings, reports)


def assert_queries_find_data(prometheus: Prometheus, start: float, end: float) -> None:
    assert QUERIES
    for title, query in QUERIES:
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        found = prometheus.ask("query_range", query=query, start=start, end=end, step="1s")
        assert found, f"{title}: {query} finds nothing"
        for series in found:
            values = [float(value) for _, value in series["values"]]
            assert any(map(math.isfinite, values)), f"{title}: {query} is {values}"


def assert_components_export_their_own(prometheus: Prometheus) -> None:
    up = prometheus.ask("query", query='count by (component) (up{run="run"} == 1)')
    processes = {series["metric"]["component"]: series["value"][1] for series in up}
    assert processes == {"controller": "1", "rollout": "2", "learner": "1", "reward": "1"}
    for component, module in EXPORTED_BY.items():
        for series in series_of(module):
            name = f"{series.name}_sum" if series.kind == "histogram" else series.name
            found = prometheus.ask("query", query=f"count by (component) ({name})")
            assert [one["metric"] for one in found] == [{"component": component}], name


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
    assert counted(learner.EDGES_KEPT) + counted(learner.EDGES_SKIPPED) == trees * schedule.trained_edges
    assert counted(learner.ROWS_TRAINED) == sum(update.rows for report in reports for update in report.updates)
    for phase in run.PHASES:
        seconds = sum(report.seconds[phase] for report in reports)
        assert counted(run.PHASE_SECONDS, f'{{phase="{phase}"}}') == pytest.approx(seconds, abs=1e-3)
    for pool, count in {"rollout_workers": 2, "learner": 1}.items():
        assert counted(run.PROCESSES, f'{{pool="{pool}"}}') == count
    for nothing in (run.QUEUE_LENGTH, run.RESTARTS, run.RETRIES, scoring.FAILURES):
        assert counted(nothing) == 0
