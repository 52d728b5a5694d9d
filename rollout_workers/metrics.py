"""Metrics of a rollout worker."""

from prometheus_client import Counter, Gauge, Histogram

FORWARD_PASSES = Counter("branchgrpo_forward_passes", "Rows through the network in rollouts, one per parent state.")
FORWARD_ROWS = Histogram(
    "branchgrpo_forward_batch_rows",
    "Rows in one forward pass of a rollout.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
EDGES_SAMPLED = Counter("branchgrpo_edges_sampled", "Edges that were sampled.")
LEAVES_SAMPLED = Counter("branchgrpo_leaves_sampled", "Leaves that were sampled.")
LEAVES_DECODED = Counter("branchgrpo_leaves_decoded", "Leaves that were decoded: all, or those that somebody looks at.")
TASKS = Counter("branchgrpo_tasks", "Tasks that were sampled to their end.")
TREES_SAMPLED = Counter("branchgrpo_trees_sampled", "Trees that were sampled to their last leaf.")
HANDING_OVER_SECONDS = Counter(
    "branchgrpo_handing_over_seconds",
    "Seconds in which workers put parts into the object store and waited for room there.",
)
SAMPLING_SECONDS = Counter("branchgrpo_sampling_seconds", "Seconds spent on tasks, waiting for the reader included.")
WEIGHTS_VERSION = Gauge("branchgrpo_worker_weights_version", "Version of the weights that a worker samples with.")
WEIGHTS_STALENESS = Gauge("branchgrpo_worker_weights_staleness", "Updates of the weights that a worker is behind.")
