"""The simulation of a run: known answers, what must hold of any run, and how trees are cut up as it is really done."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from branchgrpo.benchmarks.support.gaussian import GaussianPolicy
from branchgrpo.cluster.plan.costs import Transport
from branchgrpo.cluster.plan.simulation import Cluster, Costs, Outcome, simulate, stretches
from branchgrpo.cluster.run.cuts import MAX_UNREAD_PARTS, PIECE_BYTES
from branchgrpo.proto.schedule import Schedule, tree_schedule
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.tree import Task
from branchgrpo.rollout_workers.worker import RolloutWorker
from hypothesis import given, settings
from hypothesis import strategies as st

SPLITS = {0: 2, 1: 2, 2: 2}
SCHEDULE = tree_schedule(5, kernel="dance", eta=0.5, splits=SPLITS)
"""Eight leaves, 1 + 2 + 4 + 8 + 8 forward passes, 15 + 8 rows."""


def recipe(workers: int = 1, trees: int = 8, **changes: Any) -> RunSettings:
    """A recipe with `SCHEDULE`, a tree per task, and one window of all trees; changes go by `section__name`."""
    sections: dict[str, Any] = {
        "name": "simulated",
        "policy": {"pretrained": "none"},
        "prompts": {"train": "none", "per_iteration": trees},
        "rewards": {"ocr": {}},
        "schedule": {"steps": 5, "splits": SPLITS},
        "rollout": {"trees_per_task": 1},
        "learner": {"window_trees": trees, "rows_per_micro_batch": 4},
        "pools": {"rollout_workers": {"count": workers}, "learner": {"count": 1}, "rewards": {"ocr": {}}},
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        section = sections
        for key in path:
            section = section[key]
        section[last] = value
    return RunSettings.model_validate(sections)


def steady(outcome: Outcome) -> float:
    """Seconds of an iteration that is neither the first nor the last."""
    return outcome.seconds[len(outcome.seconds) // 2]


def counted(recipe: RunSettings, outcome: Outcome, iterations: int = 3) -> None:
    """Every leaf is scored once, every tree learned once, and no bound is exceeded."""
    trees, schedule, rollout = recipe.prompts.per_iteration, recipe.schedule.build(), recipe.rollout
    assert len(outcome.seconds) == iterations
    assert outcome.counts["trees"] == iterations * trees
    assert outcome.counts["pictures"] == sum(outcome.batches) == iterations * trees * schedule.leaves
    assert outcome.most["parts in scoring"] <= rollout.max_parts_in_scoring
    assert outcome.most["parts unread"] <= MAX_UNREAD_PARTS
    assert outcome.most["trees in flight"] <= recipe.max_trees_ahead


@pytest.mark.parametrize("max_batch_rows", [1, 3, 4, 5, 8, 100])
@pytest.mark.parametrize("trees", [1, 3])
@pytest.mark.parametrize("roots", [1, 2])
def test_trees_are_cut_up_as_a_worker_does(max_batch_rows: int, trees: int, roots: int) -> None:
    schedule = tree_schedule(5, kernel="dance", eta=0.5, splits=SPLITS, roots=roots)
    policy = GaussianPolicy([0.0], [[1.0]], 5, prompts=trees)
    rollout = recipe(rollout__max_batch_rows=max_batch_rows).rollout
    task = Task(1, tuple(range(trees)), tuple(map(str, range(trees))), schedule, seed=0)
    forwards: list[int] = []
    policy.network.register_forward_pre_hook(lambda module, given: forwards.append(len(given[0])))
    parts = list(RolloutWorker(policy, rollout).sample(task))
    work = stretches(schedule, trees, max_batch_rows)
    assert [rows for stretch in work for rows in stretch.forwards] == forwards
    planned = [part for stretch in work for part in stretch.parts]
    assert [part.tree for part in planned] == [part.tree for part in parts]
    assert [part.leaves for part in planned] == [len(part.leaves) for part in parts]
    assert [part.first for part in planned] == [part.conditioning is not None for part in parts]
    for simulated, real in zip(planned, parts, strict=True):
        assert np.array_equal(np.sort(simulated.nodes), real.nodes)


def test_one_worker_takes_the_sum_of_its_forward_passes() -> None:
    costs = Costs(forward=0.5, forward_row=0.25, decode_picture=0.1)
    outcome = simulate(recipe(), costs)
    tree = 5 * 0.5 + SCHEDULE.forward_passes * 0.25 + SCHEDULE.leaves * 0.1
    assert outcome.seconds == pytest.approx([8 * tree] * 3, abs=0.05)  # a batch waits for 0.01 s
    assert outcome.busy["rollout"] == pytest.approx(1, abs=0.01)
    counted(recipe(), outcome)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8, 20])
def test_tasks_go_round_in_waves(workers: int) -> None:
    outcome = simulate(recipe(workers), Costs(forward=1.0))
    assert steady(outcome) == pytest.approx(5 * math.ceil(8 / workers), abs=0.05)


def test_slow_rewards_take_the_sum_of_their_pictures() -> None:
    slow = recipe(4, trees=16, rollout__max_parts_in_scoring=4)
    costs = Costs(forward=0.01, score_picture=0.5)
    outcome = simulate(slow, costs)
    assert steady(outcome) == pytest.approx(5 * 0.01 + 16 * SCHEDULE.leaves * 0.5, rel=0.01)
    assert outcome.busy["rewards"] == pytest.approx(1, abs=0.01)
    assert outcome.most["parts in scoring"] == 4
    counted(slow, outcome)
    twice = simulate(slow, costs, Cluster(workers=4, ranks=1, replicas=2))
    assert steady(twice) == pytest.approx(steady(outcome) / 2, rel=0.01)


def test_scores_are_given_in_batches_and_one_by_one() -> None:
    together = recipe(8, pools__rewards__ocr={"batch_wait_seconds": 0.5})
    costs = Costs(forward=1.0, score_batch=3.0)
    assert steady(simulate(together, costs)) == pytest.approx(5 + 0.02 + 3, abs=0.6)  # 8 x 8 pictures in one batch
    alone = recipe(8, pools__rewards__ocr={"batch_wait_seconds": 0.5, "deterministic": True})
    assert steady(simulate(alone, costs)) == pytest.approx(5 + 8 * 3, abs=0.6)


def test_a_slow_learner_takes_the_sum_of_its_windows() -> None:
    slow = recipe(8, trees=16, learner__window_trees=2)
    costs = Costs(forward=0.1, micro_batch=0.5, learn_row=0.25, update=2.0)
    rows = 2 * SCHEDULE.rows
    window = math.ceil(rows / 4) * 0.5 + rows * 0.25
    assert steady(simulate(slow, costs)) == pytest.approx(5 * 0.1 + 8 * window + 2, abs=0.05)
    shared = simulate(slow, costs, Cluster(workers=8, ranks=3, replicas=1))
    rows = math.ceil(rows / 3)
    window = math.ceil(rows / 4) * 0.5 + rows * 0.25
    assert steady(shared) == pytest.approx(5 * 0.1 + 8 * window + 2, abs=0.05)
    counted(slow, shared)


def test_every_pass_takes_its_rows_and_its_step() -> None:
    costs = Costs(learn_row=0.25, update=2.0)
    for passes in (1, 3):
        outcome = simulate(recipe(learner__passes=passes), costs)
        assert steady(outcome) == pytest.approx(passes * (8 * SCHEDULE.rows * 0.25 + 2), abs=0.05)


def test_sampling_ahead_takes_the_longer_of_two() -> None:
    for row in (0.01, 0.1, 0.2):
        costs = Costs(forward=1.0, learn_row=row)
        sampling, learning = 8 * 5 * 1.0, 8 * SCHEDULE.rows * row
        assert steady(simulate(recipe(), costs)) == pytest.approx(sampling + learning, abs=0.1)
        ahead = simulate(recipe(staleness=1), costs, iterations=7)
        assert steady(ahead) == pytest.approx(max(sampling, learning), rel=0.02)
        counted(recipe(staleness=1), ahead, iterations=7)


def test_a_slow_controller_holds_everybody_up() -> None:
    outcome = simulate(recipe(8), Costs(forward=0.01, part_message=1.0, score_reply=0.5))
    assert steady(outcome) == pytest.approx(8 * 1.5, abs=0.2)
    assert outcome.busy["controller"] == pytest.approx(1, abs=0.02)


def test_weights_go_to_every_other_node_once() -> None:
    sent = recipe(6, trees=6)
    outcome = simulate(sent, Costs(weights_bytes=60, network=10, put=30), Cluster(6, 1, 1, per_node=2))
    # Of four nodes three hold workers and the fourth the learner.
    assert outcome.counts["bytes"] == 2 * 3 * 60  # the first iteration needs none
    assert steady(outcome) == pytest.approx(2 + 3 * 6, abs=0.05)
    assert outcome.waiting["weights"] > 0.5
    together = recipe(trees=6, placement="colocated", pools__learner={"count": 6})
    assert simulate(together, Costs(weights_bytes=60, network=10, put=30)).counts["bytes"] == 0


def test_weights_reach_many_nodes_hardly_later_than_two() -> None:
    """Those of FLUX.1-dev, with a worker on every node but the learner's: pieces and nodes add up. Without passing on,
    the learner's node sends them all."""
    costs = Costs(forward=1.0, weights_bytes=23.8e9, network=5e9, window_rank=0.2e-3)
    pieces, whole = math.ceil(23.8e9 / PIECE_BYTES), 23.8 / 5

    def seconds(workers: int, *, pass_on: bool = True) -> float:
        cluster, transport = Cluster(workers, 1, 1, per_node=1), Transport(pass_on=pass_on)
        outcome = simulate(recipe(workers, trees=workers), costs, cluster, transport=transport)
        assert outcome.counts["bytes"] == pytest.approx(2 * workers * 23.8e9)
        return steady(outcome) - 5

    assert seconds(1) == pytest.approx(whole, rel=0.02)
    assert seconds(3) == pytest.approx(whole * (pieces + 2) / pieces, rel=0.02)
    assert seconds(63) == pytest.approx(whole * (pieces + 62) / pieces, rel=0.02)
    assert seconds(63) < 1.5 * seconds(1)
    assert seconds(63, pass_on=False) == pytest.approx(63 * whole, rel=0.02)


def test_states_go_only_to_nodes_whose_ranks_have_their_rows() -> None:
    """Two trees on node 0, two ranks on nodes of their own: each gets one of the trees, conditioning included."""
    costs = Costs(state_bytes=1.0, conditioning_bytes=100.0, network=1000.0)
    split = simulate(recipe(1, trees=2), costs, Cluster(1, 2, 1, per_node=1))
    assert split.counts["bytes"] == 3 * 2 * (SCHEDULE.nodes + 100)
    whole = simulate(recipe(1, trees=2), costs, Cluster(1, 2, 1, per_node=2))
    assert whole.counts["bytes"] == 3 * (SCHEDULE.nodes + 100)  # the other rank is on the worker's node
    assert Cluster(1, 2, 1, per_node=2).nodes(colocated=False) == 2


def test_ranks_that_learn_from_leaves_share_those() -> None:
    """Of schedules without noise, too, which have no row."""
    schedule = {"method": "nft", "steps": 5, "group": 4}
    leaves = recipe(1, trees=2, schedule=schedule, advantage={"normaliser": "group"}, learner__objective="nft")
    costs = Costs(state_bytes=1.0, conditioning_bytes=100.0, network=1000.0)
    outcome = simulate(leaves, costs, Cluster(1, 2, 1, per_node=1))
    counted(leaves, outcome)
    assert outcome.counts["bytes"] == 3 * 2 * (leaves.schedule.build().nodes + 100)


@pytest.mark.parametrize(("learning", "waits"), [(4.0, 1), (0.5, 4)], ids=["slow learner", "slow network"])
def test_states_arrive_while_the_learner_works(learning: float, waits: int) -> None:
    """Four windows of a tree; a tree's states take a second. What remains is the first wait, or the slower of two."""
    costs = Costs(state_bytes=1.0, network=SCHEDULE.nodes, learn_row=learning / SCHEDULE.rows)
    own, apart = recipe(1, trees=4, learner__window_trees=1), Cluster(1, 1, 1, per_node=1)
    one_by_one = simulate(own, costs, apart, transport=Transport(fetch_ahead=False))
    assert steady(one_by_one) == pytest.approx(4 * (1 + learning), abs=0.05)
    ahead = simulate(own, costs, apart)
    assert steady(ahead) == pytest.approx(waits + (5 - waits) * learning, abs=0.05)
    assert ahead.counts["bytes"] == one_by_one.counts["bytes"]
    assert ahead.waiting["states"] < one_by_one.waiting["states"]
    counted(own, ahead)


def test_colocated_ranks_learn_when_all_is_sampled() -> None:
    turns = recipe(placement="colocated", learner__window_trees=2, pools__learner={"count": 2})
    costs = Costs(forward=1.0, learn_row=0.1)
    outcome = simulate(turns, costs)
    assert steady(outcome) == pytest.approx(4 * 5 + 4 * SCHEDULE.rows * 0.1, abs=0.1)
    assert outcome.busy["rollout"] + outcome.busy["learner"] == pytest.approx(1, abs=0.01)
    little_room = turns.rollout.model_copy(update={"max_trees_in_flight": 1})
    assert simulate(turns.model_copy(update={"rollout": little_room}), costs).seconds == outcome.seconds


CLUSTERS = st.builds(Cluster, *[st.integers(1, 6)] * 4)
SECONDS = st.floats(0, 2)
COSTS = st.builds(
    Costs,
    **dict.fromkeys(("forward", "forward_row", "score_batch", "score_picture", "micro_batch", "learn_row"), SECONDS),
    **dict.fromkeys(("part_message", "score_reply", "latency"), st.floats(0, 0.1)),
    **dict.fromkeys(("picture_bytes", "state_bytes", "weights_bytes"), st.floats(0, 10)),
    **dict.fromkeys(("put", "network"), st.floats(10, 1000)),
)
RECIPES = st.builds(
    recipe,
    trees=st.integers(1, 9),
    staleness=st.integers(0, 1),
    rollout__trees_per_task=st.integers(1, 3),
    rollout__max_batch_rows=st.sampled_from([1, 3, 8, 100]),
    rollout__max_parts_in_scoring=st.integers(1, 5),
    rollout__max_trees_in_flight=st.none() | st.integers(1, 6),
    learner__window_trees=st.integers(1, 4),
)


@settings(max_examples=60)
@given(RECIPES, COSTS, CLUSTERS)
def test_nothing_is_lost_and_no_bound_exceeded(recipe: RunSettings, costs: Costs, cluster: Cluster) -> None:
    outcome = simulate(recipe, costs, cluster)
    counted(recipe, outcome)
    assert all(-1e-9 <= share <= 1 + 1e-6 for name, share in outcome.busy.items() if name in ("rollout", "learner"))
    assert simulate(recipe, costs, cluster) == outcome


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 2), SECONDS)
def test_more_workers_are_never_slower(trees: int, workers: int, more: int, forward: float, row: float) -> None:
    costs = Costs(forward=forward, learn_row=row / 10)
    few, many = (
        simulate(recipe(trees=trees, learner__window_trees=2), costs, Cluster(n, 1, 1))
        for n in (workers, workers + more)
    )
    assert sum(many.seconds) <= sum(few.seconds) + 0.1  # the waits of batches
    assert Counter(few.counts) == Counter(many.counts)


def test_tasks_of_one_shape_are_cut_up_once() -> None:

    same = Schedule(SCHEDULE.steps)
    assert stretches(same, 2, 4) is stretches(SCHEDULE, 2, 4)
