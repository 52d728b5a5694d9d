"""Metrics of a run's controller."""

import math
from collections.abc import Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from ...proto.settings import RewardSettings
from ..run.loop import IterationReport

REGISTRY = CollectorRegistry()
"""The controller's series. They aren't in prometheus_client's default registry, because every process that calls the
controller imports this module, and would export zeros for them."""
ProcessCollector(registry=REGISTRY)
counter = partial(Counter, registry=REGISTRY)
gauge = partial(Gauge, registry=REGISTRY)
histogram = partial(Histogram, registry=REGISTRY)

PHASES = ("rollout", "scoring", "waiting", "learning", "publishing")

LEAVES_SCORED = counter("branchgrpo_run_leaves_scored", "Leaves that have all their scores.")
ITERATION = gauge("branchgrpo_iteration", "Iterations done.")
ITERATION_SECONDS = histogram(
    "branchgrpo_iteration_seconds",
    "Seconds of an iteration.",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800),
)
LAST_ITERATION_SECONDS = gauge("branchgrpo_last_iteration_seconds", "Seconds of the last iteration.")
LAST_PROGRESS = gauge(
    "branchgrpo_last_progress_timestamp_seconds", "When the last iteration ended, or the run began, in Unix seconds."
)
PHASE_SECONDS = counter(
    "branchgrpo_phase_seconds",
    "Seconds of a phase (rollout, scoring, waiting, learning, publishing). Phases overlap, "
    "but waiting for scores is the rest after the rollouts have ended.",
    ["phase"],
)
IDLE_SECONDS = counter(
    "branchgrpo_idle_seconds", "Seconds that processes of a pool had nothing to do, added up over them.", ["pool"]
)
HELD_UP_SECONDS = counter(
    "branchgrpo_held_up_seconds",
    "Seconds in which workers with a task computed nothing, for too much waited for scores, added up over them. They "
    "count when their iteration ends.",
)
PROCESSES = gauge("branchgrpo_processes", "Processes of a pool.", ["pool"])
WANTED = gauge(
    "branchgrpo_processes_wanted",
    "Processes that a pool should have; above branchgrpo_processes some wait for room or load their models.",
    ["pool"],
)
QUEUE_LENGTH = gauge(
    "branchgrpo_queue_length",
    "Queue lengths: tasks that wait for a worker, parts for scores, trees for the learner.",
    ["queue"],
)
REWARD = gauge(
    "branchgrpo_reward",
    "Rewards of the last iteration's leaves: mean, std, min, max. kind: trained, or watched (weight 0).",
    ["reward", "kind", "statistic"],
)
REWARD_WEIGHT = gauge(
    "branchgrpo_reward_weight",
    "Weight of a reward: with one below 0 its scores should fall, with 0 it is watched.",
    ["reward"],
)
DIVERSITY = gauge(
    "branchgrpo_diversity",
    "How much leaves of one tree differ in the last iteration that decoded some: a channel's deviation over them, from "
    "0 to 1.",
)
DIVERSITY.set(math.nan)  # 0 would be a value
EVALUATION_REWARD = gauge(
    "branchgrpo_evaluation_reward",
    "Mean reward of the last evaluation's pictures. kind: trained, or watched (weight 0).",
    ["reward", "kind"],
)
EVALUATION_DIVERSITY = gauge(
    "branchgrpo_evaluation_diversity",
    "How much samples of one prompt differ in the last evaluation; only with evaluation.samples above 1.",
)
EVALUATION_DIVERSITY.set(math.nan)
OBJECT_STORE_USED = gauge(
    "branchgrpo_object_store_used_ratio", "Share of the object store that is in use, on the node where it is largest."
)
DISK_USED = gauge("branchgrpo_disk_used_ratio", "Share of the disk that the run folder is on that is in use.")
SCORING_HIDDEN = gauge(
    "branchgrpo_scoring_hidden_ratio", "Share of the last iteration's scoring time during which trees were sampled."
)
PUBLISHED_VERSION = gauge("branchgrpo_published_weights_version", "Newest version of the weights that was published.")
RETRIES = counter("branchgrpo_scoring_retries", "Score requests that were sent again.", ["model"])
WORK_FLOPS = gauge(
    "branchgrpo_work_flops",
    "Floating-point operations of one piece of work: a forward row, a trained row, a decoded leaf, a leaf scored by a "
    "reward model (branchgrpo_leaves_scored_total counts these in a replica); absent where they can't be counted.",
    ["work"],
)
FLOPS = counter(
    "branchgrpo_flops",
    "Floating-point operations of a phase, without padding; absent where they can't be counted.",
    ["phase"],
)
UTILISATION = gauge(
    "branchgrpo_utilisation_ratio",
    "Operations of the last iteration as a share of the GPUs' peak while they were at work; absent where that isn't "
    "known.",
    ["phase"],
)
LEFT_OUT = counter("branchgrpo_trees_left_out", "Trees that were skipped because a reward failed.")
RECOVERIES = gauge(
    "branchgrpo_recoveries", "Restarts of all processes from a checkpoint, since the run was started or resumed."
)
RESTARTS = counter("branchgrpo_worker_restarts", "Processes that died and were replaced.", ["pool"])


def kind(reward: RewardSettings) -> str:
    """Whether a reward is trained on, or watched to tell whether training on the others misleads."""
    return "trained" if reward.weight else "watched"


def note_evaluation(means: Mapping[str, float], rewards: Mapping[str, RewardSettings]) -> None:
    """Export what came of an evaluation."""
    for name, mean in means.items():
        if name == "diversity":
            EVALUATION_DIVERSITY.set(mean)
        else:
            EVALUATION_REWARD.labels(name, kind(rewards[name])).set(mean)


def note_work(flops: Mapping[str, float]) -> None:
    """Export the operations of each kind of work."""
    for work, one in flops.items():
        WORK_FLOPS.labels(work).set(one)


def note_iteration(
    report: IterationReport, rewards: Mapping[str, RewardSettings], seconds: float, version: int
) -> None:
    """Export what a finished iteration was."""
    ITERATION.set(report.iteration)
    LAST_PROGRESS.set_to_current_time()
    ITERATION_SECONDS.observe(seconds)
    LAST_ITERATION_SECONDS.set(seconds)
    for phase, flops in report.flops.items():
        FLOPS.labels(phase).inc(flops)
    for phase, share in report.utilisation.items():
        UTILISATION.labels(phase).set(share)
    for name, values in report.rewards.items():
        REWARD_WEIGHT.labels(name).set(rewards[name].weight)
        for statistic in ("mean", "std", "min", "max"):
            REWARD.labels(name, kind(rewards[name]), statistic).set(float(getattr(values, statistic)()))
    if report.diversity is not None:  # else nothing was decoded: a mean over time of NaN would be none
        DIVERSITY.set(report.diversity)
    SCORING_HIDDEN.set(report.scoring_hidden)
    PUBLISHED_VERSION.set(version)
