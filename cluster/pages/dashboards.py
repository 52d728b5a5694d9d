"""The Grafana dashboards of a run, cluster/observability/grafana/dashboards/: `make docs` writes them there.

A function for each dashboard gives its rows; a panel is its title, what good looks like, its unit, and its queries with
their legends.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphTresholdsStyleMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from ...learner import metrics as learner
from ...proto.atomic_files import write_text
from ...reward_service import metrics as scoring
from ...rollout_workers import metrics as sampling
from ..observability import metrics as run
from .panels import (
    PROMETHEUS,
    Panel,
    curves,
    figure,
    mean,
    of_run,
    paint,
    quantile,
    rate,
    stacked,
    steps,
    thresholds,
    total,
    value,
)

TAG = "branchgrpo"
PHASE_COLORS = {
    "rollout": "blue",
    "scoring": "purple",
    "waiting": "red",
    "learning": "green",
    "publishing": "yellow",
}
NEARLY_FULL = {0.8: "yellow", 0.9: "red"}
LOGPROB_LIMITS = {1e-5: "yellow", 1e-3: "red"}
LOGPROB_MEANING = (
    "Largest difference between the learner's and the sampler's log-probabilities, before the first update of an "
    "iteration. It must stay near zero: below 1e-5 in float32 (yellow above), below a tenth of learner.clip_range in "
    "bfloat16. If it grows, no other figure can be trusted."
)
MEAN_SECONDS = f"{total(run.ITERATION_SECONDS, '_sum')} / {total(run.ITERATION_SECONDS, '_count')}"
REPLICAS = f"count by (pool) ({of_run('up', component='reward', pool='$pool')} == 1)"

Rows = Mapping[str, Sequence[Panel]]
"""Panels by the title of their row."""


def limited(panel: timeseries.Panel, limits: Mapping[float, str]) -> timeseries.Panel:
    """Curves with lines where it gets critical."""
    style = common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED)
    return panel.thresholds(thresholds(limits)).thresholds_style(style)


def idle_share() -> timeseries.Panel:
    workers = f"{rate(run.IDLE_SECONDS, by='pool', pool='$pool')} / {value(run.PROCESSES, by='pool', pool='$pool')}"
    replicas = f"clamp_min(1 - {rate(scoring.SCORING_SECONDS, '_sum', by='pool', pool='$pool')} / {REPLICAS}, 0)"
    return curves(
        "Idle share",
        "Share of a pool's time without work: workers without a task, learner ranks without trees, replicas without "
        "pictures; colocated processes are in both pools, and idle while they wait for scores. The pool that is never "
        "idle is the bottleneck: give it more processes. One that is idle most of the time can do with fewer.",
        "percentunit",
        ("{{pool}}", workers),
        ("{{pool}}", replicas),
    ).max(1)


def processes() -> timeseries.Panel:
    return steps(
        curves(
            "Processes",
            "Processes of each pool; of a reward model, the replicas that answer Prometheus. Colocated learner ranks "
            "are in both pools. It should be what the recipe, or the last `branchgrpo scale`, says. Rollout workers "
            "that are wanted and not there wait for room, or load their models.",
            "none",
            ("{{pool}}", value(run.PROCESSES, by="pool", pool="$pool")),
            ("{{pool}} wanted", value(run.WANTED, by="pool", pool="$pool")),
            ("{{pool}}", REPLICAS),
        )
    )


def staleness() -> timeseries.Panel:
    return steps(
        curves(
            "Weights staleness",
            "Versions by which each worker's weights are behind the newest: 0, or 1 where the recipe says staleness: "
            "1.",
            "none",
            ("{{instance}}", value(sampling.WEIGHTS_STALENESS, by="instance")),
        ).axis_soft_max(1)
    )


def scoring_errors() -> timeseries.Panel:
    return steps(
        curves(
            "Errors of scoring",
            "Since the run's (last) start: requests that a replica could not score, and requests sent again. 0 is "
            "good; after six attempts at a request its tree is left out, or the run stops "
            "(rollout.max_unscored_fraction).",
            "none",
            ("{{model}} failures", total(scoring.FAILURES, by="model")),
            ("{{model}} retries", total(run.RETRIES, by="model")),
            ("trees left out", total(run.LEFT_OUT)),
        ).axis_soft_max(1)
    )


def overview() -> Rows:
    phases = curves(
        "Phases",
        "Seconds of each phase per second of wall time. Phases overlap, so they add up to more than 100 % where "
        "sampling, scoring and learning go on at once. Waiting (red) is when the rollouts have ended and the learner "
        "has to wait for scores: it should be small.",
        "percentunit",
        ("{{phase}}", rate(run.PHASE_SECONDS, by="phase")),
        width=12,
        height=9,
    )
    for phase, color in PHASE_COLORS.items():
        paint(phases, phase, color)
    low, middle, high, spread = (
        value(run.REWARD, reward="$reward", statistic=statistic) for statistic in ("min", "mean", "max", "std")
    )
    band = curves(
        "Reward: $reward",
        "Of the last iteration's leaves: mean, a standard deviation around it (dark), smallest and largest (light). "
        "The mean of what is trained on should rise, and the dark band not close before it has.",
        "short",
        ("max", high),
        ("mean + std", f"{middle} + {spread}"),
        ("mean", middle),
        ("mean - std", f"{middle} - {spread}"),
        ("min", low),
        width=24,
        height=10,
        negative=True,
    )
    paint(band, "max", "light-blue", lineWidth=0, fillBelowTo="min", fillOpacity=12)
    paint(band, "mean + std", "blue", lineWidth=0, fillBelowTo="mean - std", fillOpacity=25)
    paint(band, "mean", "blue", lineWidth=3)
    paint(band, "mean - std", "blue", lineWidth=0)
    paint(band, "min", "light-blue", lineWidth=0)
    return {
        "Iteration": [
            figure("Iterations", "Iterations done.", "none", value(run.ITERATION), width=3),
            figure(
                "Since the last one",
                "Time since the last iteration ended, or the run began. Far above the seconds of an iteration the run "
                "has stalled.",
                "s",
                f"time() - {value(run.LAST_PROGRESS)}",
                width=3,
            ),
            figure("Mean seconds of one", "Mean since the run's (last) start.", "s", MEAN_SECONDS, width=3),
            figure(
                "Images per second",
                "Leaves with all their scores, over the chosen time: what all pools get done together.",
                "none",
                f"sum (rate({of_run(run.LEAVES_SCORED)}[$__range]))",
                width=3,
            ),
            figure(
                "Edges kept",
                "Share of the trained edges that entered the gradient since the run's (last) start; the others had an "
                "advantage of exactly zero, or were pruned. Near 0 there is little left to learn.",
                "percentunit",
                f"{total(learner.EDGES_TRAINED)} / ({total(learner.EDGES_TRAINED)} + {total(learner.EDGES_SKIPPED)}"
                f" + {total(learner.EDGES_PRUNED)})",
            ),
            figure(
                "Largest logprob_abs_diff",
                f"{LOGPROB_MEANING} This is its largest value in the chosen time.",
                "sci",
                f"max (max_over_time({of_run(learner.LOGPROB_ABS_DIFF)}[$__range]))",
                LOGPROB_LIMITS,
            ),
            figure(
                "Restarts, retries, failures",
                "Since the run's (last) start; 0 is good. The dashboard Cluster and faults tells which.",
                "none",
                f"{total(run.RESTARTS)} + {total(run.RETRIES)} + {total(scoring.FAILURES)}",
                {1: "orange"},
            ),
            steps(
                curves(
                    "Seconds per iteration",
                    "Of the last iteration; mean and 90 % quantile (from the histogram's buckets) since the run's "
                    "(last) start. Level, or falling while edges without an advantage become more.",
                    "s",
                    ("last", value(run.LAST_ITERATION_SECONDS)),
                    ("mean", MEAN_SECONDS),
                    ("90 %", f"histogram_quantile(0.9, {total(run.ITERATION_SECONDS, '_bucket', by='le')})"),
                    width=12,
                    height=9,
                )
            ),
            stacked(phases),
            curves(
                "Images",
                "Leaves per second: sampled, and with all their scores. The two should go together.",
                "ops",
                ("sampled", rate(sampling.LEAVES_SAMPLED)),
                ("scored", rate(run.LEAVES_SCORED)),
            ),
            curves(
                "Waiting for scores",
                "Share of the wall time in which the rollouts had ended and the learner had to wait for scores. Near 0 "
                "the reward models keep up.",
                "percentunit",
                ("waiting", rate(run.PHASE_SECONDS, phase="waiting")),
            ).max(1),
            steps(
                curves(
                    "Scoring hidden behind rollouts",
                    "Share of an iteration's scoring time during which trees were being sampled. At 100 % scoring "
                    "costs no time.",
                    "percentunit",
                    ("hidden", value(run.SCORING_HIDDEN)),
                )
            ).max(1),
        ],
        "Pools": [idle_share(), processes(), staleness()],
        "Reward": [
            curves(
                "Mean reward",
                "Of the last iteration's leaves. What is trained on should rise and take what is held out (weight 0) "
                "along: if that falls meanwhile, the policy games the reward.",
                "short",
                ("{{kind}}: {{reward}}", value(run.REWARD, by="reward, kind", statistic="mean")),
                negative=True,
            ),
            steps(
                curves(
                    "Evaluations",
                    "Mean rewards of deterministic samples of the held-out prompts.",
                    "short",
                    ("{{kind}}: {{reward}}", value(run.EVALUATION_REWARD, by="reward, kind")),
                    negative=True,
                )
            ),
            curves(
                "Diversity",
                "How much the leaves of one tree differ in a pixel, and the samples of one prompt in evaluations "
                "(evaluation.samples above 1). A slow fall is what learning costs; a steep one while the reward rises "
                "means that the policy has come to draw one picture.",
                "percentunit",
                ("training", value(run.DIVERSITY)),
                ("evaluation", value(run.EVALUATION_DIVERSITY)),
            ),
            band.fill_opacity(0).repeat("reward").repeat_direction("h"),
        ],
    }


def rollouts() -> Rows:
    share = f"{rate(sampling.SAMPLING_SECONDS, by='instance')}"
    return {
        "Throughput": [
            curves(
                "Forward passes",
                "Per second, counted in rows (one per parent state), and transitions sampled with them. Their quotient "
                "is how much a tree saves.",
                "ops",
                ("forward passes", rate(sampling.FORWARD_PASSES)),
                ("edges", rate(sampling.EDGES_SAMPLED)),
            ),
            curves(
                "Rows in a forward pass",
                "Mean and 95 % quantile. Large batches use a GPU well: below rollout.max_batch_rows give a task more "
                "trees (rollout.trees_per_task).",
                "none",
                ("mean", mean(sampling.FORWARD_ROWS)),
                ("95 %", quantile(0.95, sampling.FORWARD_ROWS)),
            ),
            curves(
                "Seconds per tree and task",
                "Means, of one worker. Level.",
                "s",
                ("task", f"{rate(sampling.SAMPLING_SECONDS)} / {rate(sampling.TASKS)}"),
                ("tree", f"{rate(sampling.SAMPLING_SECONDS)} / {rate(sampling.TREES_SAMPLED)}"),
            ),
        ],
        "Workers": [
            curves(
                "Share of time at work",
                "Of each worker: with a task, until its parts are taken. All alike is good.",
                "percentunit",
                ("{{instance}}", share),
            ),
            curves(
                "Back-pressure",
                "Share of the time at work in which workers handed parts over: put them into the object store and "
                "waited for room there. Near 0; where it is high, the reward models are too slow "
                "(rollout.max_parts_in_scoring limits what waits for them).",
                "percentunit",
                ("handing over", f"{rate(sampling.HANDING_OVER_SECONDS)} / {rate(sampling.SAMPLING_SECONDS)}"),
            ),
            curves(
                "Queues",
                "What waits: tasks for a worker, parts of trees for scores, scored trees for the learner.",
                "none",
                ("{{queue}}", value(run.QUEUE_LENGTH, by="queue")),
            ),
            steps(
                curves(
                    "First score",
                    "Share of an iteration's forward passes that were done when its first leaf was scored. Low is "
                    "good: leaves are scored, and trees learned from, while others grow.",
                    "percentunit",
                    ("forward passes done", value(run.FIRST_SCORE)),
                )
            ).max(1),
            steps(
                curves(
                    "Weights version",
                    "Newest version that was published, and the one that each worker samples with.",
                    "none",
                    ("published", value(run.PUBLISHED_VERSION)),
                    ("{{instance}}", value(sampling.WEIGHTS_VERSION, by="instance")),
                )
            ),
            staleness(),
        ],
    }


def rewards() -> Rows:
    busy = (
        f"{rate(scoring.SCORING_SECONDS, '_sum', by='model')} / count by (model) ({of_run(scoring.REQUESTS_WAITING)})"
    )
    return {
        "Reward models": [
            curves(
                "Requests waiting",
                "In the replicas of each model. It may rise during a rollout and must fall to 0 after; if it doesn't, "
                "give the model replicas.",
                "none",
                ("{{model}}", total(scoring.REQUESTS_WAITING, by="model")),
            ),
            curves(
                "Pictures in a batch",
                "Mean and 95 % quantile. Near pools.rewards.MODEL.batch_pictures when there is much to score.",
                "none",
                ("{{model}}", mean(scoring.BATCH_PICTURES, by="model")),
                ("{{model}}, 95 %", quantile(0.95, scoring.BATCH_PICTURES, by="model")),
            ),
            curves(
                "Pictures scored",
                "Per second, by model.",
                "ops",
                ("{{model}}", rate(scoring.LEAVES_SCORED, by="model")),
            ),
            curves(
                "Seconds per request",
                "In a replica, waiting for its batch included: mean and 95 % quantile.",
                "s",
                ("{{model}}", mean(scoring.REQUEST_SECONDS, by="model")),
                ("{{model}}, 95 %", quantile(0.95, scoring.REQUEST_SECONDS, by="model")),
            ),
            curves(
                "Seconds per batch",
                "Mean and 95 % quantile. What is far above is in the panel beside is time spent waiting.",
                "s",
                ("{{model}}", mean(scoring.SCORING_SECONDS, by="model")),
                ("{{model}}, 95 %", quantile(0.95, scoring.SCORING_SECONDS, by="model")),
            ),
            curves(
                "Share of time at work",
                "Of a model's replicas. Near 100 % the model holds up the others; idle most of the time, it needs "
                "fewer.",
                "percentunit",
                ("{{model}}", busy),
            ),
            scoring_errors(),
            curves(
                "Standard deviation of rewards",
                "Over the last iteration's leaves. Near 0 all leaves are alike, and there is nothing to learn from.",
                "short",
                ("{{reward}}", value(run.REWARD, by="reward", statistic="std", reward="$reward")),
            ),
        ],
    }


def learning() -> Rows:
    edges = curves(
        "Edges kept and left out",
        "Edges per second that entered the gradient, that were skipped for their zero advantage, and that were pruned. "
        "Skipping costs nothing; when nearly all are skipped, prompts are too easy or too hard.",
        "ops",
        ("kept", rate(learner.EDGES_TRAINED)),
        ("skipped", rate(learner.EDGES_SKIPPED)),
        ("pruned", rate(learner.EDGES_PRUNED)),
    )
    paint(edges, "kept", "green")
    paint(edges, "skipped", "text")
    return {
        "Is it sound?": [
            limited(
                curves("logprob_abs_diff", LOGPROB_MEANING, "sci", ("largest", value(learner.LOGPROB_ABS_DIFF))),
                LOGPROB_LIMITS,
            ),
            curves(
                "Ratio",
                "Smallest and largest ratio of an edge's probabilities, new to old, in the last update. With one "
                "update per iteration it is 1; with more, a few clip ranges around 1.",
                "short",
                ("{{statistic}}", value(learner.RATIO, by="statistic")),
                negative=True,
            ),
            limited(
                curves(
                    "Clip fraction",
                    "Share of the last update's edges whose gradient was clipped away. Above a half, "
                    "learner.clip_range is small for so large a step.",
                    "percentunit",
                    ("clipped", value(learner.CLIP_FRACTION)),
                ),
                {0.5: "yellow"},
            ),
            curves(
                "Gradient norm",
                "Of the last update, before clipping. Level; a rise by tens foretells a collapse.",
                "short",
                ("norm", value(learner.GRADIENT_NORM)),
            ),
            curves(
                "KL to the reference",
                "Divergence from the policy before training, averaged over latent dimensions, by the edges' weights; 0 "
                "without learner.kl_weight. It grows slowly.",
                "sci",
                ("KL", value(learner.KL)),
            ),
            curves("Learning rate", "Of the last update.", "sci", ("rate", value(learner.LEARNING_RATE))),
        ],
        "Work": [
            stacked(edges),
            curves(
                "Rows trained",
                "Parent states per second that went forward and backward, by learner rank. Ranks should be alike.",
                "ops",
                ("{{instance}}", rate(learner.ROWS_TRAINED, by="instance")),
            ),
            curves(
                "Rows in a micro-batch",
                "Mean. Near learner.rows_per_micro_batch: far below, windows are too small (learner.window_trees).",
                "none",
                ("rows", mean(learner.MICRO_BATCH_ROWS)),
            ),
            curves(
                "Share of time at work",
                "Of each rank. The rest is waiting for trees and scores.",
                "percentunit",
                ("{{instance}}", rate(learner.LEARNING_SECONDS, by="instance")),
            ),
            curves(
                "Memory",
                "Resident memory of each rank, and the most that PyTorch has held of its GPU. Level.",
                "bytes",
                ("{{instance}}", f"max by (instance) ({of_run('process_resident_memory_bytes', component='learner')})"),
                ("{{instance}}, GPU", value(learner.DEVICE_MEMORY, by="instance")),
            ),
            steps(
                curves(
                    "Updates and version",
                    "Optimizer steps since the run's (last) start, and the version of the weights.",
                    "none",
                    ("updates", total(learner.UPDATES)),
                    ("version", value(learner.WEIGHTS_VERSION)),
                )
            ),
        ],
    }


def faults() -> Rows:
    return {
        "Faults": [
            steps(
                curves(
                    "Restarts",
                    "Since the run's (last) start: processes that died and were replaced, and how often all were set "
                    "up again from a checkpoint. Their logs, and the driver's, tell why.",
                    "none",
                    ("{{pool}}", total(run.RESTARTS, by="pool", pool="$pool")),
                    ("from a checkpoint", value(run.RECOVERIES)),
                ).axis_soft_max(1)
            ),
            scoring_errors(),
            steps(
                curves(
                    "Processes that answer",
                    "Processes that Prometheus reaches, and that it knows of. The two should be one.",
                    "none",
                    ("{{pool}} up", f"sum by (pool) ({of_run('up', pool='$pool')})"),
                    ("{{pool}} known", f"count by (pool) ({of_run('up', pool='$pool')})"),
                )
            ),
        ],
        "Resources": [
            limited(
                curves(
                    "Object store",
                    "Share in use, on the node where it is largest. Back-pressure keeps it bounded: level. From 80 % "
                    "Ray spills to disk.",
                    "percentunit",
                    ("used", value(run.OBJECT_STORE_USED)),
                ).max(1),
                {0.6: "yellow", 0.75: "red"},
            ),
            limited(
                curves(
                    "Disk of the run folder",
                    "Share in use. Checkpoints need room: checkpoint.keep limits how many there are.",
                    "percentunit",
                    ("used", value(run.DISK_USED)),
                ).max(1),
                NEARLY_FULL,
            ),
            curves(
                "Memory",
                "Resident memory of each process. Level: the controller's doesn't grow with trees.",
                "bytes",
                (
                    "{{pool}} {{instance}}",
                    f"max by (pool, instance) ({of_run('process_resident_memory_bytes', pool='$pool')})",
                ),
                ("controller", f"max ({of_run('process_resident_memory_bytes', component='controller')})"),
            ),
            curves(
                "CPU",
                "Cores in use by each process.",
                "none",
                (
                    "{{pool}} {{instance}}",
                    f"sum by (pool, instance) (rate({of_run('process_cpu_seconds_total', pool='$pool')}"
                    "[$__rate_interval]))",
                ),
                (
                    "controller",
                    f"sum (rate({of_run('process_cpu_seconds_total', component='controller')}[$__rate_interval]))",
                ),
                width=12,
            ),
            curves(
                "Open files",
                "Of each process. Level: a rise is a leak.",
                "none",
                ("{{pool}} {{instance}}", f"max by (pool, instance) ({of_run('process_open_fds', pool='$pool')})"),
                width=12,
            ),
        ],
    }


BOARDS: dict[str, tuple[str, str, Callable[[], Rows]]] = {
    "overview": ("Overview", "How long iterations take and why, what comes of them.", overview),
    "rollouts": ("Rollouts", "What the rollout workers do, and whether they are held up.", rollouts),
    "rewards": ("Rewards", "The reward models: queues, batches, latencies, errors.", rewards),
    "learner": ("Learner", "Whether learning is sound, and what it costs.", learning),
    "faults": ("Cluster and faults", "What died, what was tried again, what is nearly full.", faults),
}
"""By the name of their file: title, what it is for, and its rows."""


def choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A variable that takes one of the values which labels have in the chosen time."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def some(variable: dashboard.QueryVariable) -> dashboard.QueryVariable:
    """Any number of values; at first all."""
    # What has no such label is left out. "All" is more than the values that Grafana finds: a colocated process is in
    # two pools and tells Prometheus one.
    return variable.multi(True).include_all(True).all_value(".+").current(VariableOption(True, ["All"], ["$__all"]))


def content(name: str) -> str:
    """A dashboard as Grafana imports it."""
    title, purpose, rows = BOARDS[name]
    board = (
        dashboard.Dashboard(f"BranchGRPO: {title}")
        .uid(f"branchgrpo-{name}")
        .description(purpose)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("BranchGRPO")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(choice("run", "Run", "label_values(branchgrpo_iteration, run)"))
        .with_variable(some(choice("pool", "Pools", f"label_values({of_run('up')}, pool)")))
        .with_variable(some(choice("reward", "Rewards", f"label_values({of_run(run.REWARD)}, reward)")))
    )
    number = 0
    for row, panels in rows().items():
        number += 1
        board.with_row(dashboard.Row(row).id(number))
        for panel in panels:
            number += 1
            board.with_panel(panel.id(number))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2) + "\n"


if __name__ == "__main__":
    for name in BOARDS:
        write_text(Path(sys.argv[1]) / f"{name}.json", content(name))
