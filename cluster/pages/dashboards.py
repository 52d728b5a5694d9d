"""Writes Grafana's dashboards from dashboards.yaml, beside this file, into a folder: `make docs` calls it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...proto.atomic_files import write_text
from ...proto.yaml12 import read_yaml

DASHBOARDS: Mapping[str, Any] = read_yaml(Path(__file__).with_suffix(".yaml").read_text())
"""By the name of their file."""
COLUMNS = 24
TAG = "branchgrpo"
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
STAT_OPTIONS = {
    "graphMode": "none",
    "colorMode": "value",
    "justifyMode": "auto",
    "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
    "textMode": "auto",
    "orientation": "auto",
}
CURVES_OPTIONS = {
    "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["mean", "lastNotNull"]},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
CURVES = {
    "lineWidth": 2,
    "fillOpacity": 8,
    "showPoints": "never",
    "spanNulls": 300_000,  # milliseconds: means have no value while nothing happens
}
LOOKS = {
    "steps": {"lineInterpolation": "stepAfter"},
    "stacked": {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 50, "lineWidth": 1},
    "thresholds": {"thresholdsStyle": {"mode": "dashed"}},
}
LINK = {"title": "BranchGRPO", "type": "dashboards", "tags": [TAG], "includeVars": True, "keepTime": True}


def _variable(name: str, label: str, query: str, several: bool) -> dict[str, Any]:
    """A variable whose values are those of a label in the chosen time. If it may have `several`, it begins with all."""
    variable: dict[str, Any] = {"type": "query", "name": name, "label": label, "query": {"query": query, "refId": name}}
    variable |= {"datasource": PROMETHEUS, "refresh": 2, "sort": 1, "multi": several, "includeAll": several}
    if several:
        # "All" is more than the values that Grafana finds: a colocated process is in two pools and reports one.
        variable |= {"allValue": ".+", "current": {"text": ["All"], "value": ["$__all"], "selected": True}}
    return variable


VARIABLES = [
    {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"},
    _variable("run", "Run", "label_values(branchgrpo_iteration, run)", False),
    _variable("pool", "Pools", 'label_values(up{run="$run"}, pool)', True),
    _variable("reward", "Rewards", 'label_values(branchgrpo_reward{run="$run"}, reward)', True),
]


def dashboard(name: str) -> dict[str, Any]:
    """A dashboard as Grafana imports it."""
    entry = DASHBOARDS[name]
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in entry["rows"].items():
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": []})
        panels[-1]["gridPos"] = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        left, top, height = 0, top + 1, 0
        for panel in map(_panel, row):
            place = panel["gridPos"]
            if left + place["w"] > COLUMNS:
                left, top, height = 0, top + height, 0
            place |= {"x": left, "y": top}
            left, height = left + place["w"], max(height, place["h"])
            panels.append(panel)
        top += height
    return {
        "title": f"BranchGRPO: {entry['title']}",
        "uid": f"branchgrpo-{name}",
        "description": entry["description"],
        "schemaVersion": 36,
        "tags": [TAG],
        "links": [LINK],
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "refresh": "10s",
        "graphTooltip": 1,  # one crosshair in all panels
        "templating": {"list": VARIABLES},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _panel(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A panel without its place; the top of dashboards.yaml says what an entry holds."""
    stat = entry.get("type") == "stat"
    size = 4 if stat else 8
    queries = [{entry["title"]: entry["query"]}] if stat else entry["queries"]
    limits = [{"value": value, "color": color} for value, color in entry.get("thresholds", {}).items()]
    values: dict[str, Any] = {"unit": entry["unit"]}
    if stat or limits:
        values["thresholds"] = {"mode": "absolute", "steps": [{"value": None, "color": "green"}, *limits]}
    if not stat:
        bounds = {"min": entry.get("min", 0), "max": entry.get("max")}
        values |= {name: bound for name, bound in bounds.items() if bound is not None}
        looks = [CURVES, *(LOOKS[look] for look in LOOKS if entry.get(look)), entry.get("custom", {})]
        values["custom"] = {name: value for look in looks for name, value in look.items()}
    panel = {
        "type": "stat" if stat else "timeseries",
        "title": entry["title"],
        "description": entry["description"],
        "datasource": PROMETHEUS,
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend, "instant": stat, "range": not stat}
            for number, target in enumerate(queries)
            for legend, query in target.items()
        ],
        "options": STAT_OPTIONS if stat else CURVES_OPTIONS,
        "fieldConfig": {"defaults": values, "overrides": [_look(*curve) for curve in entry.get("curves", {}).items()]},
        "gridPos": {"w": entry.get("width", size), "h": entry.get("height", size)},
    }
    return panel | ({"repeat": entry["repeat"], "repeatDirection": "h"} if "repeat" in entry else {})


def _look(legend: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Colour and other options of one curve."""
    color = {"id": "color", "value": {"mode": "fixed", "fixedColor": options["color"]}}
    others = [{"id": f"custom.{name}", "value": value} for name, value in options.items() if name != "color"]
    return {"matcher": {"id": "byName", "options": legend}, "properties": [color, *others]}


if __name__ == "__main__":
    for name in DASHBOARDS:
        write_text(Path(sys.argv[1]) / f"{name}.json", json.dumps(dashboard(name), indent=2) + "\n")
