"""The Grafana dashboard of a run, cluster/dashboards/branchgrpo.json: `make docs` writes it there.

A function for each row; a panel is its title, what it tells, its unit, and its queries with their legends.
"""

import json
import sys

from grafana_foundation_sdk.builders import common, dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphTresholdsStyleMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, VariableOption, VariableRefresh, VariableSort

from ..learner import metrics as learner
from ..reward_service import metrics as scoring
from ..rollout_workers import metrics as sampling
from . import metrics as run
from .panels import (
    PROMETHEUS,
    Panel,
    curves,
    figure,
    mean,
    of_run,
    paint,
    rate,
    stacked,
    steps,
    thresholds,
    total,
    value,
)

PHASE_COLORS = {
    "rollout": "blue",
    "scoring": "purple",
    "waiting": "red",
    "learning": "green",
    "publishing": "yellow",
}
LOGPROB_LIMITS = {1e-5: "yellow", 1e-3: "red"}
LOGPROB_MEANING = (
    "Largest difference between the learner's and the sampler's log-probabilities, before the first update of an "
    "iteration. It must stay near zero: below 1e-5 in float32 (yellow above), below a tenth of learner.clip_range in "
    "bfloat16. If it grows, no other figure can be trusted."
)


def iteration_row() -> list[Panel]:
    kept, skipped = total(learner.EDGES_KEPT), total(learner.EDGES_SKIPPED)
    mean_seconds = f"{total(run.ITERATION_SECONDS, '_sum')} / {total(run.ITERATION_SECONDS, '_count')}"
    phases = curves(
        "Phases",
        "Seconds of each phase per second of wall time. Phases overlap, so they add up to more than 100 % where "
        "sampling, scoring and learning go on at once. Waiting is when the rollouts have ended and the learner has to "
        "wait for scores.",
        "percentunit",
        ("{{phase}}", rate(run.PHASE_SECONDS, by="phase")),
        width=12,
        height=9,
    )
    for phase, color in PHASE_COLORS.items():
        paint(phases, phase, color)
    return [
        figure("Iterations", "Iterations done.", "none", value(run.ITERATION), width=3),
        figure(
            "Since the last iteration",
            "Time since the last iteration ended, or the run began. Far above the seconds of an iteration the run has "
            "stalled.",
            "s",
            f"time() - {value(run.LAST_PROGRESS)}",
            width=3,
        ),
        figure("Updates", "Optimizer steps since the run's (last) start.", "none", total(learner.UPDATES), width=3),
        figure("Seconds per iteration", "Mean since the run's (last) start.", "s", mean_seconds, width=3),
        figure(
            "Edges kept",
            "Share of the trained edges that entered the gradient since the run's (last) start; the others had an "
            "advantage of exactly zero.",
            "percentunit",
            f"{kept} / ({kept} + {skipped})",
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
            "Since the run's (last) start. The last panel tells which.",
            "none",
            f"{total(run.RESTARTS)} + {total(run.RETRIES)} + {total(scoring.FAILURES)}",
            {1: "orange"},
        ),
        steps(
            curves(
                "Seconds per iteration",
                "Of the last iteration; mean and 90 % quantile (from the histogram's buckets) since the run's (last) "
                "start.",
                "s",
                ("last", value(run.LAST_ITERATION_SECONDS)),
                ("mean", mean_seconds),
                ("90 %", f"histogram_quantile(0.9, {total(run.ITERATION_SECONDS, '_bucket', by='le')})"),
                width=12,
                height=9,
            )
        ),
        stacked(phases),
        curves(
            "Waiting for scores",
            "Share of the wall time in which the rollouts had ended and the learner had to wait for scores. Near 0 the "
            "reward models keep up.",
            "percentunit",
            ("waiting", rate(run.PHASE_SECONDS, phase="waiting")),
        ).max(1),
        steps(
            curves(
                "Scoring hidden behind rollouts",
                "Share of an iteration's scoring time during which trees were being sampled. At 100 % scoring costs no "
                "time.",
                "percentunit",
                ("hidden", value(run.SCORING_HIDDEN)),
            )
        ).max(1),
        steps(
            curves(
                "Rollouts done at the first score",
                "Share of an iteration's forward passes that were done when its first leaf was scored. Low is good: "
                "leaves are scored, and trees learned from, while others grow.",
                "percentunit",
                ("done", value(run.FIRST_SCORE)),
            )
        ).max(1),
    ]


def reward_row() -> list[Panel]:
    low, middle, high, spread = (
        value(run.REWARD, reward="$reward", statistic=statistic) for statistic in ("min", "mean", "max", "std")
    )
    band = curves(
        "Reward: $reward",
        "Of the last iteration's leaves: mean, a standard deviation around it (dark), smallest and largest (light).",
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
    difference = curves("logprob_abs_diff", LOGPROB_MEANING, "sci", ("largest", value(learner.LOGPROB_ABS_DIFF)))
    return [
        band.fill_opacity(0).repeat("reward").repeat_direction("h"),
        curves(
            "Standard deviation of rewards",
            "Over the last iteration's leaves. Near 0 all leaves are alike, and there is nothing to learn from.",
            "short",
            ("{{reward}}", value(run.REWARD, by="reward", statistic="std")),
        ),
        curves(
            "Clip fraction",
            "Share of the last update's edges whose gradient was clipped away. Where it is high, learner.clip_range is "
            "small for so large a step.",
            "percentunit",
            ("clipped", value(learner.CLIP_FRACTION)),
        ),
        difference.thresholds(thresholds(LOGPROB_LIMITS)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED)
        ),
        curves(
            "Gradient norm",
            "Of the last update, before clipping.",
            "short",
            ("norm", value(learner.GRADIENT_NORM)),
            width=8,
        ),
        curves("Learning rate", "Of the last update.", "sci", ("rate", value(learner.LEARNING_RATE)), width=8),
        curves(
            "KL to the reference",
            "Divergence from the policy before training, averaged over latent dimensions, by the edges' weights; 0 "
            "without learner.kl_weight.",
            "sci",
            ("KL", value(learner.KL)),
            width=8,
        ),
    ]


def pools_row() -> list[Panel]:
    replicas = f"count by (pool) ({of_run('up', component='reward')} == 1)"
    idle = f"{rate(run.IDLE_SECONDS, by='pool')} / {value(run.PROCESSES, by='pool')}"
    idle_replicas = f"clamp_min(1 - {rate(scoring.SCORING_SECONDS, '_sum', by='pool')} / {replicas}, 0)"
    slow_batch = f"histogram_quantile(0.95, {rate(scoring.SCORING_SECONDS, '_bucket', by='model, le')})"
    edges = curves(
        "Edges kept and left out",
        "Edges per second that entered the gradient, that were skipped for their zero advantage, and that were pruned.",
        "ops",
        ("kept", rate(learner.EDGES_KEPT)),
        ("skipped", rate(learner.EDGES_SKIPPED)),
        ("pruned", rate(learner.EDGES_PRUNED)),
    )
    paint(edges, "kept", "green")
    paint(edges, "skipped", "text")
    return [
        steps(
            curves(
                "Processes",
                "Processes of each pool; of a reward model, the replicas that answer Prometheus. Colocated learner "
                "ranks are in both pools.",
                "none",
                ("{{pool}}", value(run.PROCESSES, by="pool")),
                ("{{pool}}", replicas),
            )
        ),
        curves(
            "Idle share",
            "Share of a pool's time without work: workers without a task, learner ranks without trees, replicas "
            "without pictures. A pool that is never idle holds up the others.",
            "percentunit",
            ("{{pool}}", idle),
            ("{{pool}}", idle_replicas),
        ).max(1),
        curves(
            "Share of time at work",
            "Of each process: workers with tasks (until their results are taken), learner ranks with trees.",
            "percentunit",
            ("sampling {{instance}}", rate(sampling.SAMPLING_SECONDS, by="instance")),
            ("learning {{instance}}", rate(learner.LEARNING_SECONDS, by="instance")),
        ),
        curves(
            "Rollouts",
            "Forward passes per second, counted in rows (one per parent state), and transitions sampled with them.",
            "ops",
            ("forward passes", rate(sampling.FORWARD_PASSES)),
            ("edges", rate(sampling.EDGES_SAMPLED)),
        ),
        curves(
            "Leaves",
            "Leaves per second: sampled, scored by each reward model, and with all their scores.",
            "ops",
            ("sampled", rate(sampling.LEAVES_SAMPLED)),
            ("scored by {{model}}", rate(scoring.LEAVES_SCORED, by="model")),
            ("complete", rate(run.LEAVES_SCORED)),
        ),
        curves(
            "Rows trained",
            "Parent states per second that went forward and backward, by learner rank.",
            "ops",
            ("{{instance}}", rate(learner.ROWS_TRAINED, by="instance")),
        ),
        stacked(edges),
        curves(
            "Batch sizes",
            "Means: rows in a forward pass of a rollout, rows in a micro-batch of the learner, pictures in a batch of "
            "each reward model.",
            "none",
            ("rollout rows", mean(sampling.FORWARD_ROWS)),
            ("learner rows", mean(learner.MICRO_BATCH_ROWS)),
            ("{{model}} pictures", mean(scoring.BATCH_PICTURES, by="model")),
        ),
        curves(
            "Seconds per task and batch",
            "Mean seconds of a worker for a task, and of a reward model for a batch; 95 % quantile of the latter (from "
            "the histogram's buckets).",
            "s",
            ("task", f"{rate(sampling.SAMPLING_SECONDS)} / {rate(sampling.TASKS)}"),
            ("{{model}} batch", mean(scoring.SCORING_SECONDS, by="model")),
            ("{{model}} batch, 95 %", slow_batch),
        ),
        curves(
            "Queues",
            "What waits: tasks for a worker, parts of trees for scores, scored trees for the learner, and requests in "
            "the replicas of reward models.",
            "none",
            ("{{queue}}", value(run.QUEUE_LENGTH, by="queue")),
            ("requests at {{model}}", total(scoring.REQUESTS_WAITING, by="model")),
        ),
        steps(
            curves(
                "Weights version",
                "Newest version that was published, the learner's, and the one that each worker samples with.",
                "none",
                ("published", value(run.PUBLISHED_VERSION)),
                ("learner", value(learner.WEIGHTS_VERSION)),
                ("{{instance}}", value(sampling.WEIGHTS_VERSION, by="instance")),
            )
        ),
        steps(
            curves(
                "Staleness",
                "Versions by which each worker's weights are behind the newest: 0, or 1 where the recipe says "
                "staleness: 1.",
                "none",
                ("{{instance}}", value(sampling.WEIGHTS_STALENESS, by="instance")),
            ).axis_soft_max(1)
        ),
        steps(
            curves(
                "Restarts, retries, failures",
                "Since the run's (last) start: workers that died and were replaced, score requests that were sent "
                "again, and requests that a replica could not score.",
                "none",
                ("{{pool}} restarts", total(run.RESTARTS, by="pool")),
                ("{{model}} retries", total(run.RETRIES, by="model")),
                ("{{model}} failures", total(scoring.FAILURES, by="model")),
                width=24,
                height=7,
            ).axis_soft_max(1)
        ),
    ]


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


def content() -> str:
    """The dashboard as Grafana imports it."""
    rewards = choice("reward", "Rewards", f"label_values({of_run(run.REWARD)}, reward)").multi(True).include_all(True)
    board = (
        dashboard.Dashboard("BranchGRPO")
        .uid("branchgrpo")
        .description("One run: its iterations and their phases, its rewards, its pools of processes.")
        .tags(["branchgrpo"])
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(choice("run", "Run", "label_values(branchgrpo_iteration, run)"))
        .with_variable(rewards.current(VariableOption(True, ["All"], ["$__all"])))
    )
    number = 0
    for title, panels in (("Iteration", iteration_row()), ("Reward", reward_row()), ("Pools", pools_row())):
        number += 1
        board.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            board.with_panel(panel.id(number))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(content())
