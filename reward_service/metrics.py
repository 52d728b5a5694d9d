"""Metrics of a reward model's replica."""

from prometheus_client import Counter, Gauge, Histogram

LEAVES_SCORED = Counter("branchgrpo_leaves_scored", "Pictures that were scored, by reward model.", ["model"])
BATCH_PICTURES = Histogram(
    "branchgrpo_scoring_batch_pictures",
    "Pictures in one batch, by reward model.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
SCORING_SECONDS = Histogram(
    "branchgrpo_scoring_batch_seconds",
    "Seconds for one batch, by reward model.",
    ["model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
REQUEST_SECONDS = Histogram(
    "branchgrpo_scoring_request_seconds",
    "Seconds of a request in a replica: waiting for its batch, and the batch.",
    ["model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
REQUESTS_WAITING = Gauge(
    "branchgrpo_scoring_requests_waiting", "Requests in a replica that have no score yet.", ["model"]
)
FAILURES = Counter("branchgrpo_scoring_failures", "Requests that a replica could not score.", ["model"])


def export(model: str) -> None:
    """Export the series of a model from now on, before there is anything to count."""
    for metric in (LEAVES_SCORED, BATCH_PICTURES, SCORING_SECONDS, REQUEST_SECONDS, REQUESTS_WAITING, FAILURES):
        metric.labels(model)
