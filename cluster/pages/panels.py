"""What the dashboard is made of: PromQL of one run's series, and panels that look alike."""

from collections.abc import Mapping

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, DynamicConfigValue, Threshold, ThresholdsMode
from prometheus_client.metrics import MetricWrapperBase

from .metrics import series_name

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
SEVERAL = {"$pool", "$reward"}
"""Variables that may have several values."""
GAP_MS = 300_000
"""Curves are drawn across gaps up to this long: means have no value while nothing happens."""

Query = tuple[str, str]
"""Legend and PromQL."""
Panel = stat.Panel | timeseries.Panel


# PromQL -----------------------------------------------------------------------------------------------------------


def of_run(metric: MetricWrapperBase | str, part: str = "", **labels: str) -> str:
    """A series of the chosen run; `part` is `_sum`, `_count` or `_bucket` of a histogram."""
    name = metric if isinstance(metric, str) else series_name(metric)
    # A variable that may have several values becomes a regular expression.
    wanted = [
        f'{label}{"=~" if value in SEVERAL else "="}"{value}"' for label, value in {"run": "$run", **labels}.items()
    ]
    return f"{name}{part}{{{', '.join(wanted)}}}"


def value(metric: MetricWrapperBase, by: str = "", **labels: str) -> str:
    """A gauge of one process, or one that all processes agree on."""
    return f"max{_by(by)} ({of_run(metric, **labels)})"


def total(metric: MetricWrapperBase, part: str = "", by: str = "", **labels: str) -> str:
    """Sum over processes."""
    return f"sum{_by(by)} ({of_run(metric, part, **labels)})"


def rate(metric: MetricWrapperBase, part: str = "", by: str = "", **labels: str) -> str:
    """How fast a counter grows per second, over all processes."""
    return f"sum{_by(by)} (rate({of_run(metric, part, **labels)}[$__rate_interval]))"


def quantile(share: float, histogram: MetricWrapperBase, by: str = "") -> str:
    """Quantile of what a histogram was told of late, as far as its buckets tell."""
    return f"histogram_quantile({share}, {rate(histogram, '_bucket', f'{by}, le'.removeprefix(', '))})"


def mean(histogram: MetricWrapperBase, by: str = "") -> str:
    """Mean of what a histogram was told of late."""
    return f"{rate(histogram, '_sum', by)} / {rate(histogram, '_count', by)}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


# Panels -----------------------------------------------------------------------------------------------------------


def figure(
    title: str, description: str, unit: str, query: str, limits: Mapping[float, str] | None = None, width: int = 4
) -> Panel:
    """One number. `limits` are the values from which it has another colour than green."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .with_target(prometheus.Dataquery().expr(query).instant().legend_format(title).ref_id("A"))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.VALUE)
        .thresholds(thresholds(limits or {}))
        .unit(unit)
        .height(4)
        .span(width)
    )


def curves(
    title: str, description: str, unit: str, *queries: Query, width: int = 8, height: int = 8, negative: bool = False
) -> timeseries.Panel:
    """Curves over time; the axis starts at 0 unless values may be `negative`."""
    wide = width > 6
    legend = common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    legend.display_mode(LegendDisplayMode.TABLE if wide else LegendDisplayMode.LIST)
    legend.calcs(["mean", "lastNotNull"] if wide else [])
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .show_points(VisibilityMode.NEVER)
        .span_nulls(GAP_MS)
        .line_width(2)
        .fill_opacity(8)
        .unit(unit)
        .height(height)
        .span(width)
    )
    for ref_id, (name, query) in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(prometheus.Dataquery().expr(query).range().legend_format(name).ref_id(ref_id))
    return panel if negative else panel.min(0)


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Curves on top of each other, as areas."""
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A")).fill_opacity(50).line_width(1)


def steps(panel: timeseries.Panel) -> timeseries.Panel:
    """Curves of values that jump."""
    return panel.line_interpolation(LineInterpolation.STEP_AFTER)


def paint(panel: timeseries.Panel, curve: str, color: str, **look: object) -> None:
    """Give a curve, named by its legend, a colour and other properties of its own."""
    values = [DynamicConfigValue(f"custom.{name}", wanted) for name, wanted in look.items()]
    panel.override_by_name(curve, [DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color}), *values])


def thresholds(limits: Mapping[float, str]) -> dashboard.ThresholdsConfig:
    """Green, and other colours from given values on."""
    changes = [Threshold(start, color) for start, color in limits.items()]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(None, "green"), *changes])
