"""The series that a run's processes export, and their page, docs/metrics.md: `make docs` writes it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from prometheus_client.metrics import MetricWrapperBase

from ...learner import metrics as learner
from ...reward_service import metrics as scoring
from ...rollout_workers import metrics as sampling
from ..observability import metrics as run

HEADER = """# Metrics

Every process of a run on Ray exports Prometheus metrics: the controller, each rollout worker, each learner rank, each
replica of a reward model. They register with the controller, which lists them for Prometheus: you maintain no list.

## Have Prometheus scrape a run

The controller serves the list of live exporters at `/sd`, for Prometheus' HTTP service discovery. Give it a fixed port,
such as `logging.metrics_port=9400`, so that the address stays the same when the run is resumed. Otherwise it takes any
free port; during the run, `ray.json` in its folder holds the address.

```yaml
# prometheus.yml
scrape_configs:
  - job_name: branchgrpo
    scrape_interval: 5s
    http_sd_configs:
      - url: http://head:9400/sd
        refresh_interval: 5s
```

`head` is the controller's host, where `branchgrpo train` was started. For several runs, list several URLs. Processes
that join or leave are noticed within 15 seconds.

Every series gets these labels from the service discovery: `run`, the run's name; `component`: `controller`, `rollout`,
`learner` or `reward`; and, except for the controller, `pool`: `rollout_workers`, `learner`, or the name of the reward
model. `up{run="mine"}` shows which processes answer. Every process also exports its memory and CPU time
(`process_resident_memory_bytes`, `process_cpu_seconds_total`).

[Operating](operating.md) describes `branchgrpo monitor`, the dashboards and a runbook.

## Alerts

`cluster/observability/prometheus/alerts.yaml` has alert rules: copy it beside prometheus.yml and name it there
(`rule_files: [alerts.yaml]`).

- `BranchGRPOIterationStalled`: no iteration has ended for three times the seconds of the previous one plus ten minutes.
  `branchgrpo status RUN` shows the phase and who is busy. End the run with Ctrl-C or SIGTERM, and resume it.
- `BranchGRPOProcessDown`: a process doesn't answer Prometheus, and others of the run do. (If none does, the run has
  ended.) Look at its node and its log. A dead worker is replaced automatically.
- `BranchGRPOSetUpAgain`: the run has restarted from a checkpoint three times in an hour, because a learner rank or the
  controller died or hung. The driver's log says which.
- `BranchGRPOWorkersRestart`: workers of a pool keep dying. Their logs say why; usually it is memory: lower
  `rollout.max_batch_rows` or `rollout.trees_per_task`.
- `BranchGRPOScoreFailures`: a reward model raised, or returned invalid scores. Its replica's log has the error. If a
  request keeps failing, the run stops.
- `BranchGRPOScoringQueueGrows`: a reward model is slower than the rollouts. Use `branchgrpo scale RUN --reward
  NAME=COUNT`, or a larger `batch_pictures`.
- `BranchGRPORewardNotANumber`: a reward's mean or deviation is not a number. Correct the reward model.
- `BranchGRPORewardFlat`: all leaves have the same score, so nothing can be learned. The task is solved, the reward is
  broken, or `schedule.eta` is too small for samples to differ.
- `BranchGRPORewardCollapses`: a mean reward has fallen by two standard deviations of its leaves. Resume from an earlier
  checkpoint with a lower learning rate or clip range, or with `learner.kl_weight`.
- `BranchGRPORewardHacked`: in an hour, a trained reward has risen by half a deviation, while a held-out one has fallen
  by as much, or the diversity has halved. Look at `samples/` in the run folder. Train on several rewards, add
  `learner.kl_weight`, or return to an earlier checkpoint.
- `BranchGRPOObjectStoreNearlyFull`: a node's object store is above 75 %; above 80 % Ray spills to disk. Lower
  `rollout.max_trees_in_flight` or `rollout.max_parts_in_scoring`, or give Ray a larger store.
- `BranchGRPODiskNearlyFull`: the run folder's disk is above 90 %. Lower `checkpoint.keep`, or remove old runs.
- `BranchGRPOLogprobsDiffer`: learner and sampler disagree about log-probabilities. Stop: ratios no longer start from 1.
  Look for different precisions, or a policy adapter that draws noise.

## Series

With placement `colocated`, learner ranks also export the series of rollout workers. A histogram is three series: its
name with `_bucket`, `_sum` and `_count`. Counters and histograms also have `_created`, the time when they started. This
list is made from the `metrics.py` of each folder.
"""

EXPORTED_BY = {
    "controller": run,
    "rollout": sampling,
    "learner": learner,
    "reward": scoring,
}
"""Component -> the metrics of such processes."""


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
    tables = [
        "\n".join(
            [
                f"### Component `{component}`\n",
                "| series | type | labels | meaning |",
                "|---|---|---|---|",
                *(
                    f"| `{series.name}` | {series.kind} | {', '.join(f'`{label}`' for label in series.labels)} "
                    f"| {series.meaning} |"
                    for series in series_of(module)
                ),
            ]
        )
        for component, module in EXPORTED_BY.items()
    ]
    return "\n\n".join([HEADER.rstrip("\n"), *tables]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
