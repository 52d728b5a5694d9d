"""What a schedule counts ahead of time, against hand-made figures and what goes through a network."""

import numpy as np
import pytest
from branchgrpo.benchmarks.support.gaussian import GaussianPolicy
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.rows import micro_batches, pick_rows
from branchgrpo.proto.methods import branch_grpo, branch_grpo_mix, dance_grpo, flow_grpo, mix_grpo, tempflow_grpo
from branchgrpo.proto.schedule import Schedule, ode_schedule
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import Task, Tree
from branchgrpo.rollout_workers.kernels import CoefficientTable
from branchgrpo.rollout_workers.worker import RolloutWorker
from gradients import edge_logprobs


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (branch_grpo(), (203, 218, 202, 187, 16)),
        (branch_grpo(splits="sparse"), (135, 150, 134, 119, 16)),
        (branch_grpo_mix(), (203, 218, 34, 19, 16)),
        # a step each for 4 and 5, and for 7 and 8, and two for the last ten
        (branch_grpo_mix(ode_stride=5), (1 + 3 * 2 + 2 * 4 + 2 * 8 + 2 * 16, 78, 34, 19, 16)),
        (dance_grpo(), (320, 320, 304, 304, 16)),
        (dance_grpo(shared_start=True), (305, 320, 304, 289, 16)),
        (flow_grpo(), (240, 240, 216, 216, 24)),
        (mix_grpo(), (289, 300, 48, 37, 12)),
        (tempflow_grpo(iteration=4), (100, 115, 16, 1, 16)),
        (ode_schedule(20), (20, 20, 0, 0, 1)),
    ],
)
def test_counts_by_hand_and_on_the_model(schedule: Schedule, counts: tuple[int, ...]) -> None:
    """Forward passes, edges, trained edges, rows, leaves; rows through the network in a rollout and in the learner."""
    got = (schedule.forward_passes, schedule.edges, schedule.trained_edges, schedule.rows, schedule.leaves)
    assert got == counts
    policy, seen = GaussianPolicy((0.0,), ((1.0,),), schedule.grid_steps, 1), []
    policy.network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    tree = Tree(0, "0", schedule)
    for part in RolloutWorker(policy, RolloutSettings(max_batch_rows=7)).sample(Task(1, (0,), ("0",), schedule, 1)):
        tree.add(part)
    assert (sum(seen), max(seen)) == (schedule.forward_passes, min(7, max(schedule.nodes_per_depth[:-1])))
    seen.clear()
    credits = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))]
    transitions, edges = CoefficientTable.of(schedule, policy.sigmas(schedule.grid_steps)), 0
    for batch in micro_batches(pick_rows([tree], credits), [tree], credits, rows=5):
        edges += len(edge_logprobs(policy, transitions, batch))
    assert (sum(seen), edges) == (schedule.rows, schedule.trained_edges)
