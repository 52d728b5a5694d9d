"""The dashboards are those of the code, and ask for series that exist."""

import json
import re

from branchgrpo.cluster.pages.dashboards import DASHBOARDS, dashboard
from branchgrpo.cluster.pages.metrics import EXPORTED_BY, series_of
from support import ROOT

FOLDER = ROOT / "cluster" / "observability" / "grafana" / "dashboards"
FILES = {path.stem: json.loads(path.read_text()) for path in FOLDER.iterdir()}
PANELS = [panel for board in FILES.values() for panel in board["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
SERIES = {series.name: series for module in EXPORTED_BY.values() for series in series_of(module)}
LEFT_OUT = {"branchgrpo_reward_weight"}
"""Series that the dashboards don't show, on purpose."""


def test_the_committed_dashboards_are_those_of_the_code() -> None:
    assert {name: dashboard(name) for name in DASHBOARDS} == FILES, "run `make docs`"


def test_queries_name_series_and_labels_that_exist() -> None:
    for title, query in QUERIES:
        for name, matchers in re.findall(r"\b(branchgrpo_\w+|up)\{(.*?)\}", query):
            series = SERIES.get(re.sub("_(bucket|sum|count)$", "", name)) or SERIES.get(name)
            known = {"run", "component", "pool", "instance", *(series.labels if series else ())}
            assert series or name == "up", f"{title}: {name}"
            assert set(re.findall(r"(\w+)=~?", matchers)) <= known, f"{title}: {matchers}"


def test_operations_of_decoding_are_of_leaves_that_were_decoded() -> None:
    """With rewards of latents few leaves are."""
    counted = [query for _, query in QUERIES if 'work="decoded leaf"' in query]
    assert len(counted) == 2
    assert all("branchgrpo_leaves_decoded_total" in query for query in counted)
    assert not any("branchgrpo_leaves_sampled_total" in query for query in counted)


def test_every_series_is_shown() -> None:
    queries = " ".join(query for _, query in QUERIES)
    hidden = {name for name in SERIES if not re.search(rf"\b{name}(_bucket|_sum|_count)?\{{", queries)}
    assert hidden == LEFT_OUT
