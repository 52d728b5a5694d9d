"""The figures that a learner reports after an update."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .learned_tree import LearnedTree

LOGPROB_LIMIT = 1e-3
"""Maximum difference between the learner's and the sampler's log-probabilities, whatever the clip range is."""


def logprob_limit(clip_range: float | None) -> float:
    """Difference between the learner's and the sampler's log-probabilities above which ratios can't be trusted.

    It is a tenth of the `clip_range`, which is None where none bounds plain ratios, and 1e-3 at most.
    """
    return min(LOGPROB_LIMIT, clip_range / 10) if clip_range else LOGPROB_LIMIT


@dataclass
class UpdateStats:
    """The figures of one update."""

    trees: int = 0
    rows: int = 0
    """Parent states that went forward and backward, on all ranks together."""
    edges: int = 0
    """Edges that entered the gradient."""
    skipped_edges: int = 0
    """Edges left out because their advantage is exactly zero."""
    pruned_edges: int = 0
    """Edges left out by pruning."""
    reference_rows: int = 0
    """Parent states that went through the reference policy."""
    kl: float = 0.0
    """KL divergence to the reference policy, by the edges' weights; 0 if it isn't asked for."""
    ratio_min: float = 1.0
    """Smallest exp(new - old log-probability) of its edges."""
    ratio_max: float = 1.0
    """Largest of them."""
    clip_fraction: float = 0.0
    """Share of edges whose gradient clipping took away."""
    logprob_abs_diff: float = 0.0
    """Largest difference to the sampler's log-probability. In an iteration's first update it must be near 0."""
    gradient_norm: float = 0.0
    """Norm of the gradient before clipping."""
    learning_rate: float = 0.0
    """Learning rate of this update, also if it had no edge and made no step."""
    pulls: dict[str, float] = field(default_factory=dict)
    """Trained reward -> how much of the trees' advantages is due to it, added up over trees."""
    recorded: tuple[LearnedTree, ...] = ()
    """Recorded trees of the update, without those that were left out, as its last pass had them."""
    passes: int = 1
    """Passes over its trees that these figures cover. An update without edges counts as one pass, and makes no step."""

    def note_pulls(self, others: Iterable[Mapping[str, float]]) -> None:
        """Add the pulls of other trees."""
        for pulls in others:
            for name, pull in pulls.items():
                self.pulls[name] = self.pulls.get(name, 0.0) + pull

    def followed_by(self, other: "UpdateStats") -> "UpdateStats":
        """The figures of the update's passes so far, of which `other` is the next.

        Counts are sums, and what is measured is the mean over passes, or the extreme. The difference to the sampler
        stays that of the first pass, and so do the rewards' pulls, which are the same in all.
        """

        share = 1 / (self.passes + 1)

        def mean(so_far: float, further: float) -> float:
            return so_far + (further - so_far) * share

        return replace(
            self,
            passes=self.passes + 1,
            rows=self.rows + other.rows,
            edges=self.edges + other.edges,
            skipped_edges=self.skipped_edges + other.skipped_edges,
            pruned_edges=self.pruned_edges + other.pruned_edges,
            reference_rows=self.reference_rows + other.reference_rows,
            kl=mean(self.kl, other.kl),
            ratio_min=min(self.ratio_min, other.ratio_min),
            ratio_max=max(self.ratio_max, other.ratio_max),
            clip_fraction=mean(self.clip_fraction, other.clip_fraction),
            gradient_norm=mean(self.gradient_norm, other.gradient_norm),
            learning_rate=other.learning_rate,
            recorded=other.recorded,
        )


def reward_shares(updates: Iterable[UpdateStats]) -> dict[str, float]:
    """Trained reward -> its share in the gradient of some updates; the shares add up to 1. Empty if all scores of every
    tree are equal.

    share_k = pull_k / sum over rewards j of pull_j. With `combine: advantages`, pull_k is the sum over all trees'
    trained edges of weight * |w_k * A_k|. With `combine: rewards`, it is the sum over trees of
    |w_k| * std_k / sum over j of |w_j| * std_j, where std_k is reward k's standard deviation over leaves that are
    compared with each other: those under one root, or with `normaliser: group` all of the prompt.
    """
    total = UpdateStats()
    total.note_pulls(update.pulls for update in updates)
    everything = sum(total.pulls.values())
    return {name: pull / everything for name, pull in total.pulls.items()} if everything else {}
