"""The figures that a learner reports after an update."""

from dataclasses import dataclass

from .learned_tree import LearnedTree


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
    """Learning rate of this update; 0 if it had no edge and made no step."""
    recorded: tuple[LearnedTree, ...] = ()
    """Its trees that are recorded, without those that were left out."""
