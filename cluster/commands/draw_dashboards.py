"""The dashboards as pictures, without Grafana: the same queries, drawn with matplotlib."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib.dates as dates
import matplotlib.pyplot as plt
import requests
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator, ScalarFormatter

from ...proto.atomic_files import whole
from ...proto.errors import InputError
from .monitor import DASHBOARDS, SCRAPE_SECONDS

POINTS = 240
"""Points of each curve."""
UNIT_INCHES = (0.66, 0.34)
"""Width and height of a dashboard's grid cell."""

NOTHING = "none"
GRAFANA_COLORS = {"light-blue": "lightskyblue", "text": "gray"}
"""Names that matplotlib doesn't know."""

UNITS = {"percentunit": (100, "{:.3g} %"), "s": (1, "{:.3g} s"), "bytes": (2**-20, "{:.0f} MiB"), "sci": (1, "{:.1e}")}
"""Grafana's unit -> factor and format."""
Variables = Mapping[str, str]
Series = tuple[str, list[float], list[float]]
"""Legend, times and values."""


class Prometheus:
    """The query API of a Prometheus server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def series(self, query: str, start: float, end: float) -> list[dict[str, Any]]:
        """Series of a query, each with its labels and values."""
        step = max(SCRAPE_SECONDS, (end - start) / POINTS)
        return list(self._ask("query_range", query=query, start=start, end=end, step=step)["result"])

    def first(self, label: str, run: str) -> str:
        """The first value that a label has in a run; NOTHING where it has none."""
        values = self._ask(f"label/{label}/values", **{"match[]": f'{{run="{in_quotes(run)}", {label}!=""}}'})
        return str(next(iter(values), NOTHING))

    def _ask(self, path: str, **asked: str | float) -> Any:
        """Raises InputError if the server can't be reached or doesn't take the query."""
        try:
            answer = requests.get(f"{self.url}/api/v1/{path}", params=asked, timeout=30)
            answer.raise_for_status()
            return answer.json()["data"]
        except (requests.ConnectionError, requests.Timeout) as error:
            raise InputError(
                f"--prometheus is '{self.url}', where nothing answers; `branchgrpo monitor RUN` starts Prometheus"
            ) from error
        except (requests.RequestException, LookupError, TypeError) as error:
            raise InputError(f"--prometheus is '{self.url}', which doesn't answer as one does: {error}") from error


def in_quotes(value: str) -> str:
    """A value as it stands between the quotes of a query, whose strings are escaped like those of JSON."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def draw(prometheus: Prometheus, run: str, start: float, end: float, out: Path) -> list[Path]:
    """A picture of each dashboard from Unix time `start` to `end`, in the folder `out`; returns where they are."""
    variables = {
        "run": run,
        "pool": ".+",
        "reward": ".*",
        "__rate_interval": f"{math.ceil(max(4 * SCRAPE_SECONDS, (end - start) / POINTS + SCRAPE_SECONDS))}s",
        "__range": f"{math.ceil(end - start)}s",
    }
    if prometheus.first("component", run) == NOTHING:
        raise InputError(f"the Prometheus at {prometheus.url} knows no run '{run}'")
    boards = {f"{file.stem}.png": json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))}
    with whole(out) as temporary:
        temporary.mkdir()
        for name, board in boards.items():
            _draw_board(board, prometheus, variables, start, end, temporary / name)
    return [out / name for name in boards]


def _draw_board(
    board: Mapping[str, Any], prometheus: Prometheus, variables: Variables, start: float, end: float, path: Path
) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    rows = max(place["y"] + place["h"] for place in places)
    width, height = 24 * UNIT_INCHES[0], rows * UNIT_INCHES[1] + 0.6
    figure = plt.figure(figsize=(width, height))
    title = f"{board['title']}, run {variables['run']}"
    figure.suptitle(title, x=0.01, y=1 - 0.2 / height, ha="left", fontsize=15, parse_math=False)  # a name may hold $
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, bottom = place["x"] / 24, 1 - (0.6 + (place["y"] + place["h"]) * UNIT_INCHES[1]) / height
        size = place["w"] / 24, place["h"] * UNIT_INCHES[1] / height
        if panel["type"] == "row":
            figure.text(0.01, bottom + 0.3 * size[1], panel["title"], fontsize=13, weight="bold")
            continue
        # Room for title, ticks and legend within the panel's cell.
        box = (left + 0.1 * size[0], bottom + 0.28 * size[1], 0.86 * size[0], 0.56 * size[1])
        values = dict(variables)
        if repeated := panel.get("repeat"):  # Grafana has one for each of them; this one is for the first
            values[repeated] = prometheus.first(repeated, variables["run"])
        found = [series for target in panel["targets"] for series in _series(prometheus, target, values, start, end)]
        panel = {**panel, "title": Template(panel["title"]).safe_substitute(values)}
        if panel["type"] == "stat":
            _draw_figure(figure.add_axes(box), panel, found)
        else:
            _draw_curves(figure.add_axes(box), panel, found, (start, end))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _series(
    prometheus: Prometheus, target: Mapping[str, Any], variables: Variables, start: float, end: float
) -> list[Series]:
    series, quoted = [], {name: in_quotes(value) for name, value in variables.items()}
    for found in prometheus.series(Template(target["expr"]).safe_substitute(quoted), start, end):
        legend = target["legendFormat"]
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            legend = legend.replace(f"{{{{{label}}}}}", found["metric"].get(label, ""))
        times, values = zip(*((float(time), float(value)) for time, value in found["values"]), strict=True)
        series.append((legend, list(times), list(values)))
    return series


def _colors(panel: Mapping[str, Any]) -> dict[str, str]:
    """Colours that the dashboard gives to some curves, by legend."""
    return {
        override["matcher"]["options"]: GRAFANA_COLORS.get(color := given["value"]["fixedColor"], color)
        for override in panel["fieldConfig"]["overrides"]
        for given in override["properties"]
        if given["id"] == "color"
    }


def _draw_figure(axes: Axes, panel: Mapping[str, Any], found: Sequence[Series]) -> None:
    axes.axis("off")
    axes.set_title(panel["title"], fontsize=9)
    text = "no data"
    if found and math.isfinite(value := found[0][2][-1]):
        text = _format(panel)(value, None)
    axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=18, color="tab:green")


def _draw_curves(axes: Axes, panel: Mapping[str, Any], found: Sequence[Series], span: tuple[float, float]) -> None:
    colors = _colors(panel)
    stacked = panel["fieldConfig"]["defaults"]["custom"].get("stacking", {}).get("mode") == "normal"
    moments = [[time / 86400 for time in times] for _, times, _ in found]  # days, matplotlib's unit
    if stacked and len({len(times) for _, times, _ in found}) == 1:
        names = [name for name, *_ in found]
        chosen = [colors.get(name, f"C{i}") for i, name in enumerate(names)]
        axes.stackplot(moments[0], [values for *_, values in found], labels=names, colors=chosen, alpha=0.6)
    else:
        for when, (name, _, values) in zip(moments, found, strict=True):
            axes.plot(when, values, label=name, linewidth=1.3, color=colors.get(name))
    axes.set_title(panel["title"], fontsize=9, loc="left")
    axes.set_xlim(span[0] / 86400, span[1] / 86400)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S" if span[1] - span[0] < 600 else "%H:%M"))
    axes.yaxis.set_major_formatter(_axis_format(panel))
    if panel["fieldConfig"]["defaults"].get("min") == 0:
        axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if found:
        axes.legend(fontsize=6, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.13), frameon=False)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")


def _format(panel: Mapping[str, Any]) -> FuncFormatter:
    """A function that writes values in the panel's unit."""
    factor, form = UNITS.get(panel["fieldConfig"]["defaults"]["unit"], (1, "{:.4g}"))
    return FuncFormatter(lambda value, _: form.format(factor * value))


def _axis_format(panel: Mapping[str, Any]) -> Formatter:
    plain = panel["fieldConfig"]["defaults"]["unit"] in ("none", "short", "ops")
    return ScalarFormatter(useOffset=False) if plain else _format(panel)
