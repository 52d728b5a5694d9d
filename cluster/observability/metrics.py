"""Metrics of a run's controller."""

import math
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from ...proto.settings import RewardSettings
from ..run.loop import IterationReport

REGISTRY = CollectorRegistry()
"""The controller's series. They aren't in prometheus_client's default registry, because every process that calls the
controller imports this module, and would export zeros for them."""
ProcessCollector(registry=REGISTRY)

PHASES = ("rollout", "scoring", "waiting", "learning", "publishing")

LEAVES_SCORED = Counter("branchgrpo_run_leaves_scored", "Leaves that have all their scores.", registry=REGISTRY)
ITERATION = Gauge("branchgrpo_iteration", "Iterations done.", registry=REGISTRY)
ITERATION_SECONDS = Histogram(
    "branchgrpo_iteration_seconds",
    "Seconds of an iteration.",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800),
    registry=REGISTRY,
)
LAST_ITERATION_SECONDS = Gauge("branchgrpo_last_iteration_seconds", "Seconds of the last iteration.", registry=REGISTRY)
LAST_PROGRESS = Gauge(
    "branchgrpo_last_progress_timestamp_seconds",
    "When the last iteration ended, or the run began, in Unix seconds.",
    registry=REGISTRY,
)
PHASE_SECONDS = Counter(
    "branchgrpo_phase_seconds",
    "Seconds of a phase (rollout, scoring, waiting, learning, publishing). Phases overlap, "
    "but waiting for scores is the rest after the rollouts have ended.",
    ["phase"],
    registry=REGISTRY,
)
IDLE_SECONDS = Counter(
    "branchgrpo_idle_seconds",
    "Seconds that processes of a pool had nothing to do, added up over them.",
    ["pool"],
    registry=REGISTRY,
)
PROCESSES = Gauge("branchgrpo_processes", "Processes of a pool.", ["pool"], registry=REGISTRY)
WANTED = Gauge(
    "branchgrpo_processes_wanted",
    "Processes that a pool should have; above branchgrpo_processes some wait for room or load their models.",
    ["pool"],
    registry=REGISTRY,
)
QUEUE_LENGTH = Gauge(
    "branchgrpo_queue_length",
    "Queue lengths: tasks that wait for a worker, parts for scores, trees for the learner.",
    ["queue"],
    registry=REGISTRY,
)
REWARD = Gauge(
    "branchgrpo_reward",
    "Rewards of the last iteration's leaves: mean, std, min, max. kind: trained, or held_out (weight 0).",
    ["reward", "kind", "statistic"],
    registry=REGISTRY,
)
DIVERSITY = Gauge(
    "branchgrpo_diversity",
    "How much leaves of one tree differ in the last iteration: a channel's deviation over them, from 0 to 1.",
    registry=REGISTRY,
)
EVALUATION_REWARD = Gauge(
    "branchgrpo_evaluation_reward",
    "Mean reward of the last evaluation's pictures. kind: trained, or held_out (weight 0).",
    ["reward", "kind"],
    registry=REGISTRY,
)
EVALUATION_DIVERSITY = Gauge(
    "branchgrpo_evaluation_diversity",
    "How much samples of one prompt differ in the last evaluation; only with evaluation.samples above 1.",
    registry=REGISTRY,
)
for _gauge in (DIVERSITY, EVALUATION_DIVERSITY):  # 0 would be a value
    _gauge.set(math.nan)
OBJECT_STORE_USED = Gauge(
    "branchgrpo_object_store_used_ratio",
    "Share of the object store that is in use, on the node where it is largest.",
    registry=REGISTRY,
)
DISK_USED = Gauge(
    "branchgrpo_disk_used_ratio", "Share of the disk that the run folder is on that is in use.", registry=REGISTRY
)
SCORING_HIDDEN = Gauge(
    "branchgrpo_scoring_hidden_ratio",
    "Share of the last iteration's scoring time during which trees were sampled.",
    registry=REGISTRY,
)
FIRST_SCORE = Gauge(
    "branchgrpo_first_score_ratio",
    "Share of the last iteration's forward passes that were done at its first score.",
    registry=REGISTRY,
)
PUBLISHED_VERSION = Gauge(
    "branchgrpo_published_weights_version", "Newest version of the weights that was published.", registry=REGISTRY
)
RETRIES = Counter("branchgrpo_scoring_retries", "Score requests that were sent again.", ["model"], registry=REGISTRY)
LEFT_OUT = Counter("branchgrpo_trees_left_out", "Trees that were skipped because a reward failed.", registry=REGISTRY)
RECOVERIES = Gauge(
    "branchgrpo_recoveries",
    "Restarts of all processes from a checkpoint, since the run was started or resumed.",
    registry=REGISTRY,
)
RESTARTS = Counter("branchgrpo_worker_restarts", "Processes that died and were replaced.", ["pool"], registry=REGISTRY)


def kind(reward: RewardSettings) -> str:
    """Whether a reward is trained on, or held out to tell whether training on the others misleads."""
    return "trained" if reward.weight else "held_out"


def note_evaluation(means: Mapping[str, float], rewards: Mapping[str, RewardSettings]) -> None:
    """Export what came of an evaluation."""
    for name, mean in means.items():
        if name == "diversity":
            EVALUATION_DIVERSITY.set(mean)
        else:
            EVALUATION_REWARD.labels(name, kind(rewards[name])).set(mean)


def note_iteration(
    report: IterationReport, rewards: Mapping[str, RewardSettings], seconds: float, version: int
) -> None:
    """Export what a finished iteration was."""
    ITERATION.set(report.iteration)
    LAST_PROGRESS.set_to_current_time()
    ITERATION_SECONDS.observe(seconds)
    LAST_ITERATION_SECONDS.set(seconds)
    for name, values in report.rewards.items():
        for statistic in ("mean", "std", "min", "max"):
            REWARD.labels(name, kind(rewards[name]), statistic).set(float(getattr(values, statistic)()))
    DIVERSITY.set(report.diversity)
    SCORING_HIDDEN.set(report.scoring_hidden)
    FIRST_SCORE.set(report.first_score)
    PUBLISHED_VERSION.set(version)
