"""Metrics of a learner rank."""

from prometheus_client import Counter, Gauge, Histogram

from ..proto.settings import LearnerSettings
from ..proto.update_stats import UpdateStats, logprob_limit, reward_shares

ROWS_TRAINED = Counter("branchgrpo_rows_trained", "Parent states that went forward and backward on this rank.")
EDGES_TRAINED = Counter("branchgrpo_edges_trained", "Edges in the gradient (counted by rank 0 for all ranks).")
EDGES_SKIPPED = Counter(
    "branchgrpo_edges_skipped", "Edges skipped for their zero advantage (counted by rank 0 for all ranks)."
)
EDGES_PRUNED = Counter("branchgrpo_edges_pruned", "Edges pruned (counted by rank 0 for all ranks).")
MICRO_BATCH_ROWS = Histogram(
    "branchgrpo_micro_batch_rows",
    "Rows in one forward and backward pass.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
UPDATES = Counter("branchgrpo_updates", "Updates, also those without an edge, which make no step.")
LEARNING_SECONDS = Counter(
    "branchgrpo_learning_seconds", "Seconds of this rank in forward and backward passes and steps."
)
FETCHING_SECONDS = Counter(
    "branchgrpo_fetching_seconds",
    "Seconds of this rank's learning in which it waited for states: those that weren't fetched ahead.",
)
GRADIENT_NORM = Gauge("branchgrpo_gradient_norm", "Norm of the last update's gradient, before clipping.")
RATIO = Gauge(
    "branchgrpo_ratio", "Minimum and maximum ratio of probabilities, new to old, in the last update.", ["statistic"]
)
CLIP_FRACTION = Gauge("branchgrpo_clip_fraction", "Share of the last update's edges whose gradient was clipped away.")
LOGPROB_ABS_DIFF = Gauge(
    "branchgrpo_logprob_abs_diff",
    "Maximum difference between the learner's and the sampler's log-probabilities, in updates with the weights that "
    "sampled.",
)
LOGPROB_ABS_DIFF_LIMIT = Gauge(
    "branchgrpo_logprob_abs_diff_limit",
    "Value of branchgrpo_logprob_abs_diff above which ratios can't be trusted: a tenth of learner.clip_range, and 1e-3 "
    "at most.",
)
REWARD_SHARE = Gauge(
    "branchgrpo_reward_share", "Share of a trained reward in the advantages of the last update's trees.", ["reward"]
)
KL = Gauge(
    "branchgrpo_kl", "KL divergence to the policy before training, in the last update; 0 without learner.kl_weight."
)
DEVICE_MEMORY = Gauge(
    "branchgrpo_device_memory_peak_bytes", "Peak memory of this rank's GPU held by PyTorch; 0 without a GPU."
)
LEARNING_RATE = Gauge("branchgrpo_learning_rate", "Learning rate of the last update.")
WEIGHTS_VERSION = Gauge("branchgrpo_learner_weights_version", "Version of the learner's weights.")


def note_settings(settings: LearnerSettings) -> None:
    """Export what the learner's figures are measured by."""
    clipped = settings.trust_region == "clip"  # other regions bound no ratios, or normalised ones
    LOGPROB_ABS_DIFF_LIMIT.set(logprob_limit(settings.clip_range if clipped else None))


def note_update(stats: UpdateStats, same_weights: bool) -> None:
    """Export the figures of an update. They are equal on all ranks, and rank 0 exports them.

    `same_weights`: whether it started from the weights that sampled its trees.
    """
    UPDATES.inc()
    EDGES_TRAINED.inc(stats.edges)
    EDGES_SKIPPED.inc(stats.skipped_edges)
    EDGES_PRUNED.inc(stats.pruned_edges)
    GRADIENT_NORM.set(stats.gradient_norm)
    CLIP_FRACTION.set(stats.clip_fraction)
    RATIO.labels("min").set(stats.ratio_min)
    RATIO.labels("max").set(stats.ratio_max)
    KL.set(stats.kl)
    LEARNING_RATE.set(stats.learning_rate)
    for reward, share in reward_shares([stats]).items():
        REWARD_SHARE.labels(reward).set(share)
    if same_weights:
        LOGPROB_ABS_DIFF.set(stats.logprob_abs_diff)
