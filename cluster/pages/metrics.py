"""The series that a run's processes export, and their page, docs/metrics.md: `make docs` prints it there."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from types import ModuleType

from prometheus_client.metrics import MetricWrapperBase

from ...learner import metrics as learner
from ...proto import usage
from ...proto.yaml12 import read_yaml
from ...reward_service import metrics as scoring
from ...rollout_workers import metrics as sampling
from ..on_ray import metrics as run

ALERTS = Path(__file__).parents[1] / "observability" / "prometheus" / "alerts.yaml"
EXPORTED_BY = {
    "controller": run,
    "rollout": sampling,
    "learner": learner,
    "reward": scoring,
    "rollout, learner, reward": usage,
}
"""Components -> the metrics of such processes."""


@dataclass(frozen=True)
class Series:
    """One metric as Prometheus knows it."""

    name: str
    """A histogram's series are this with `_bucket`, `_sum` and `_count`."""
    kind: str
    labels: tuple[str, ...]
    meaning: str


def series_name(metric: MetricWrapperBase) -> str:
    """A metric's name in PromQL."""
    (family,) = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else family.name


def series_of(module: ModuleType) -> Iterator[Series]:
    """The series that a metrics module defines, in its order."""
    for metric in vars(module).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            yield Series(series_name(metric), family.type, metric._labelnames, family.documentation)


def page() -> str:
    """The page as Markdown."""
    (rules,) = read_yaml(ALERTS.read_text())["groups"]
    alerts = (f"- `{rule['alert']}`: {rule['annotations']['description']}" for rule in rules["rules"])
    wrapped = "\n".join(fill(alert, 120, subsequent_indent="  ", break_on_hyphens=False) for alert in alerts)
    lines = [Path(__file__).with_suffix(".md").read_text().replace("[alerts]", wrapped)]
    for components, module in EXPORTED_BY.items():
        named = " and ".join(f"`{component}`" for component in components.split(", "))
        lines += [f"### Component {named}", "", "| series | type | labels | meaning |", "|---|---|---|---|"]
        for series in series_of(module):
            labels = ", ".join(f"`{label}`" for label in series.labels)
            lines.append(f"| `{series.name}` | {series.kind} | {labels} | {series.meaning} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
