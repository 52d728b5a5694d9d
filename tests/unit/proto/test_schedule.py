"""Counts against the published ones, and against counting nodes one by one."""

import numpy as np
import pytest
from branchgrpo.proto.schedule import Schedule, Step, ode_schedule, tree_schedule
from hypothesis import given
from hypothesis import strategies as st

BRANCH = {0: 2, 3: 2, 6: 2, 9: 2}


def test_counts_of_the_paper_s_tree() -> None:
    schedule = tree_schedule(20, kernel="dance", eta=0.3, splits=BRANCH)
    assert (schedule.leaves, schedule.forward_passes, schedule.edges) == (16, 203, 218)
    assert (schedule.rows, schedule.trained_edges) == (187, 202)


def test_counts_of_sixteen_sequential_samples() -> None:
    schedule = tree_schedule(20, kernel="dance", eta=0.3, roots=16)
    assert (schedule.leaves, schedule.forward_passes, schedule.edges) == (16, 320, 320)
    assert (schedule.rows, schedule.trained_edges) == (304, 304)


def test_counts_at_sixteen_steps_allow_the_claimed_speed() -> None:
    tree = tree_schedule(16, kernel="dance", eta=0.7, splits=BRANCH)
    sequential = tree_schedule(16, kernel="dance", eta=0.7, roots=16)
    assert round(sequential.forward_passes / tree.forward_passes, 2) == 1.84
    assert round(sequential.rows / tree.rows, 2) == 1.95


schedules = st.builds(
    lambda roots, splits, steps: tree_schedule(
        steps, kernel="flow", eta=0.5, roots=roots, splits=splits, sde_steps=[1]
    ),
    st.integers(1, 3),
    st.dictionaries(st.integers(0, 4), st.integers(2, 3), max_size=3),
    st.integers(6, 8),
)


@given(schedules)
def test_topology_is_that_of_a_tree_grown_node_by_node(schedule: Schedule) -> None:
    width = schedule.roots
    parents, depths = [-1] * width, [0] * width
    trained_rows, trained_edges, first = set(), 0, 0
    for number, step in enumerate(schedule.steps):
        for position in range(width):
            for _ in range(step.children):
                parents.append(first + position)
                depths.append(number + 1)
                if step.trained:
                    trained_rows.add(first + position)
                    trained_edges += 1
        first += width
        width *= step.children
    assert schedule.parent.tolist() == parents
    assert schedule.depth.tolist() == depths
    assert (schedule.rows, schedule.trained_edges, schedule.leaves) == (len(trained_rows), trained_edges, width)
    assert schedule.forward_passes == len(set(parents) - {-1})
    assert schedule.edges == len(parents) - schedule.roots
    assert np.flatnonzero(schedule.trained).size == trained_edges


def test_ode_schedule_is_one_untrained_path() -> None:
    schedule = ode_schedule(4)
    assert (schedule.nodes, schedule.leaves, schedule.rows, schedule.forward_passes) == (5, 1, 0, 4)


def test_only_chosen_steps_are_stochastic() -> None:
    schedule = tree_schedule(8, kernel="cps", eta=0.5, splits={2: 3}, sde_steps=[4, 5])
    assert [i for i, step in enumerate(schedule.steps) if step.stochastic] == [2, 4, 5]
    assert schedule.trained_depths == (3, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"splits": {19: 2}}, "splits names step 19; of 20 steps, 0 to 18 can be chosen"),
        ({"splits": {-1: 2}}, "splits names step -1"),
        ({"splits": {3: 1}}, "splits gives step 3 1 children; a split has at least 2"),
        ({"sde_steps": [19]}, "sde_steps names step 19"),
        ({"roots": 0}, "roots is 0"),
        ({"eta": 0.0}, "eta is 0.0"),
        ({"eta": 1e300}, "eta is 1e\\+300; the kernel 'dance' takes values from 0.0001 to 10"),
        ({"kernel": "cps", "eta": 1.5}, "the kernel 'cps' takes values from 0.0001 to 1"),
        ({"kernel": "ddim", "eta": 1 + 2**-52}, "the kernel 'ddim' takes values from 0.0001 to 1"),
        ({"sibling_spread": -1.0}, "sibling_spread is -1.0"),
    ],
)
def test_impossible_schedules_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree_schedule(**{"steps": 20, "kernel": "dance", "eta": 0.3, **arguments})


def test_a_last_step_with_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="step 1 is the last step and must be deterministic"):
        Schedule(steps=(Step(), Step("dance", 0.3)))
