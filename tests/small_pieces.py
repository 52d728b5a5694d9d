"""The policy of other tests, in processes that cut weights into small pieces."""

from branchgrpo.cluster.on_ray import broadcast
from branchgrpo.rollout_workers.policies.flux import FluxPolicy

PIECE_BYTES = 4_000


class InSmallPieces(FluxPolicy):
    pass


broadcast.PIECE_BYTES = PIECE_BYTES
