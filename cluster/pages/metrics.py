"""All series that the processes of a run export, and the page about them, docs/metrics.md: `make docs` writes it."""

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
replica of a reward model. They all tell the controller where, and the controller tells Prometheus: nobody keeps a list.

## Have Prometheus scrape a run

The controller serves the list of live exporters at `/sd`, for Prometheus' HTTP service discovery. Give it a port that
stays the same when the run is resumed, `logging.metrics_port=9400`. Without one it takes any that is free; while the
run goes on, `ray.json` in its folder says which.

```yaml
# prometheus.yml
scrape_configs:
  - job_name: branchgrpo
    scrape_interval: 5s
    http_sd_configs:
      - url: http://head:9400/sd
        refresh_interval: 5s
```

`head` is the host of the controller, the one on which `branchgrpo train` was started. For several runs give several
URLs. Processes that join are found, and ones that leave are forgotten, within a quarter of a minute.

Every series gets these labels from the service discovery: `run`, the run's name; `component`: `controller`, `rollout`,
`learner` or `reward`; and, but for the controller, `pool`: `rollout_workers`, `learner`, or the name of the reward
model. `up{run="mine"}` tells which processes answer. Every process also exports its memory and CPU time
(`process_resident_memory_bytes`, `process_cpu_seconds_total`).

[Operating](operating.md) tells how to look at all this: `branchgrpo monitor`, the dashboards, a runbook.

## Alerts

`cluster/observability/prometheus/alerts.yaml` has alert rules: copy it beside prometheus.yml and name it there
(`rule_files: [alerts.yaml]`).

- `BranchGRPOIterationStalled`: no iteration has ended for three times the last one's seconds, and ten minutes more.
  `branchgrpo status RUN` tells the phase and who is busy; end the run with Ctrl-C or SIGTERM and resume it.
- `BranchGRPOProcessDown`: a process doesn't answer Prometheus, and others of the run do (where none does, the run has
  ended). Look at its node and its log; a worker that has died is replaced by itself.
- `BranchGRPOSetUpAgain`: the run was set up again from a checkpoint three times in an hour, because a learner rank or
  the controller died or hung. The driver's log tells which.
- `BranchGRPOWorkersRestart`: workers of a pool keep dying. Their logs tell why; most often memory: lower
  `rollout.max_batch_rows` or `rollout.trees_per_task`.
- `BranchGRPOScoreFailures`: a reward model raised, or gave what is no score. Its replica's log has the error; after
  six attempts at a request the run stops.
- `BranchGRPOScoringQueueGrows`: a reward model is slower than the rollouts. `branchgrpo scale RUN --reward
  NAME=COUNT`, or a larger `batch_pictures`.
- `BranchGRPORewardNotANumber`: a reward's mean or deviation is not a number. Mend the reward model.
- `BranchGRPORewardFlat`: all leaves score alike: nothing can be learned. The task is solved, or the reward is broken,
  or `schedule.eta` is too small to make samples differ.
- `BranchGRPORewardCollapses`: a mean reward has fallen by two standard deviations of its leaves. Resume from an
  earlier checkpoint with a lower learning rate or clip range, or a `learner.kl_weight`.
- `BranchGRPORewardHacked`: in an hour the reward that is trained on has risen by half a deviation, and a held-out one
  has fallen by as much, or diversity to less than half. Look at `samples/` in the run folder; train on several rewards,
  add a `learner.kl_weight`, or stop at an earlier checkpoint.
- `BranchGRPOObjectStoreNearlyFull`: a node's is above 75 %; Ray spills to disk from 80 %. Lower
  `rollout.max_trees_in_flight` or `rollout.max_parts_in_scoring`, or give Ray a larger store.
- `BranchGRPODiskNearlyFull`: lower `checkpoint.keep`, remove old runs.
- `BranchGRPOLogprobsDiffer`: learner and sampler disagree about log-probabilities. Stop: ratios start from 1 no more;
  look for different precisions or a policy adapter that draws noise.

## Series

With placement `colocated` learner ranks export those of rollout workers too. A histogram is three series: its name with
`_bucket`, `_sum` and `_count`. Counters and histograms also have a `_created`: when they began. This list is made from
the `metrics.py` of each folder.
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
