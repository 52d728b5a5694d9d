"""How ranks share the rows."""

from collections.abc import Callable

import numpy as np
import pytest
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.rows import Row, micro_batches, pick_rows
from branchgrpo.proto.schedule import tree_schedule
from branchgrpo.proto.tree import Tree
from branchgrpo.rollout_workers.policies.base import Policy


@pytest.mark.parametrize(("ranks", "kept"), [(2, 1), (3, 2), (2, 7), (4, 21), (1, 5), (3, 0)])
def test_shares_are_even_and_ranks_make_equally_many_passes(
    ranks: int, kept: int, tiny_policy: Policy, sample: Callable[..., list[Tree]]
) -> None:
    schedule = tree_schedule(5, kernel="dance", eta=0.5, splits={0: 2, 2: 2})
    trees = sample(tiny_policy, schedule)
    everything = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))] * len(trees)
    rows: list[Row] = pick_rows(trees, everything)[:kept]
    edges = sum(len(row.children) for row in rows)
    shares = [list(micro_batches(rows, trees, everything, rows=3, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == -(-kept // ranks) // 3 + (-(-kept // ranks) % 3 > 0)
    counted = [sum(int((batch.weights > 0).sum()) for batch in share) for share in shares]
    assert sum(counted) == edges
    real = [sum(len(batch.states) for batch in share if (batch.weights > 0).any()) for share in shares]
    assert sum(real) == kept
    assert max(real) - min(real) <= 1
