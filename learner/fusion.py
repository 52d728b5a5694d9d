"""Fusion: from the scores of leaves to a value for every node above them."""

import numpy as np

from ..proto.schedule import Schedule
from ..proto.tree import FloatArray


def fuse(
    leaf_rewards: FloatArray, logprobs: FloatArray, schedule: Schedule, beta: float = 0.0, *, per_edge: bool = False
) -> FloatArray:
    """Value of every node: the mean of the leaf rewards below it, float64 [nodes].

    `leaf_rewards` float64 [leaves]; `logprobs` float64 [nodes], of the edge into each node (averaged over latent
    dimensions). A leaf l below node n has the weight softmax(beta * s_l), s_l being the sum of log-probabilities along
    the path from n to l (BranchGRPO, eq. 3); beta = 0 is the plain, unbiased mean. With
    `per_edge` the softmax goes over a node's own children only, level by level, as in the authors' released code.
    """
    values = np.empty(schedule.nodes)
    values[schedule.first_node[-2] :] = leaf_rewards
    mass = np.zeros(schedule.leaves)  # log of the summed exp(beta * path) over the leaves below each node of a depth
    for depth in reversed(range(len(schedule.steps))):
        parents = slice(schedule.first_node[depth], schedule.first_node[depth + 1])
        children = slice(schedule.first_node[depth + 1], schedule.first_node[depth + 2])
        shape = (schedule.nodes_per_depth[depth], schedule.steps[depth].children)
        through = (mass + beta * logprobs[children]).reshape(shape)
        total = np.logaddexp.reduce(through, axis=1)
        values[parents] = (np.exp(through - total[:, None]) * values[children].reshape(shape)).sum(axis=1)
        mass = np.zeros(len(total)) if per_edge else total
    return values
