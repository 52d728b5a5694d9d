"""Every method's schedule is what its paper says: which steps are noisy, which split, which are trained, and when."""

import math
from typing import get_args

import pytest
from branchgrpo.proto import methods
from branchgrpo.proto.methods import (
    METHODS,
    branch_grpo,
    branch_grpo_mix,
    dance_grpo,
    flow_grpo,
    flow_grpo_fast,
    mix_grpo,
    tempflow_grpo,
    tree_grpo,
)
from branchgrpo.proto.recipe import load_recipe
from branchgrpo.proto.schedule import Schedule
from branchgrpo.proto.settings import Method, SplitName
from support import RECIPES


def noisy(schedule: Schedule) -> list[int]:
    """Grid steps that are stochastic; every one of them is trained, and no other."""
    assert all(step.stochastic == step.trained for step in schedule.steps)
    return [int(level) for level, step in zip(schedule.levels, schedule.steps, strict=False) if step.stochastic]


def test_sequential_methods_are_noisy_at_all_but_the_last_step() -> None:
    for schedule, group in ((dance_grpo(), 16), (flow_grpo(), 24)):
        assert (schedule.roots, schedule.splits) == (group, {})
        assert noisy(schedule) == list(range(len(schedule.steps) - 1))
    assert {step.kernel for step in dance_grpo().steps[:-1]} == {"dance"}
    assert {step.kernel for step in flow_grpo().steps[:-1]} == {"flow"}
    shared = dance_grpo(shared_start=True)
    assert (shared.roots, shared.splits, shared.sibling_spread) == (1, {0: 16}, math.inf)
    assert noisy(shared) == list(range(19))


def test_flow_grpo_fast_splits_at_a_step_drawn_each_iteration() -> None:
    starts = []
    for iteration in range(1, 200):
        schedule = flow_grpo_fast(window=3, iteration=iteration, seed=4)
        ((start, children),) = schedule.splits.items()
        assert (children, schedule.sibling_spread) == (24, math.inf)
        assert noisy(schedule) == [start, start + 1, start + 2]
        assert schedule.forward_passes == start + 1 + (9 - start) * 24
        starts.append(start)
    # Of seven places none is missed in 199 draws but with probability 7 * (6/7)^199 = 3e-13.
    assert set(starts) == set(range(7))
    assert flow_grpo_fast(iteration=3, seed=4) == flow_grpo_fast(iteration=3, seed=4)


@pytest.mark.parametrize(
    ("end", "starts"), [("stay", [0, 4, 8, 12, 16, 20, 20, 20]), ("restart", [0, 4, 8, 12, 16, 20, 0, 4])]
)
def test_mix_grpo_s_window_slides_with_iterations(end: str, starts: list[int]) -> None:
    for i, start in enumerate(starts):
        for iteration in (25 * i + 1, 25 * i + 25):
            schedule = mix_grpo(window_stride=4, window_end=end, iteration=iteration)
            assert noisy(schedule) == list(range(start, start + 4))
            assert schedule.splits == {start: 12}  # all walk the same way until there
            assert (schedule.roots, schedule.sibling_spread) == (1, math.inf)


def test_tempflow_grpo_sweeps_one_split_over_the_steps() -> None:
    for iteration in range(1, 19):
        schedule = tempflow_grpo(iteration=iteration)
        assert schedule.splits == {(iteration - 1) % 9: 16}
        assert noisy(schedule) == [(iteration - 1) % 9]
    assert tempflow_grpo(split_step=2, iteration=7).splits == {2: 16}


def test_tree_grpo_splits_at_every_step_of_a_random_window() -> None:
    starts = set()
    for iteration in range(1, 100):
        schedule = tree_grpo(iteration=iteration)
        start = min(schedule.splits)
        assert schedule.splits == {start + i: 2 for i in range(4)}
        assert noisy(schedule) == sorted(schedule.splits)
        assert (schedule.rows, schedule.trained_edges, schedule.leaves) == (15, 30, 16)
        starts.add(start)
    assert starts == set(range(6))


def test_branch_grpo_splits_where_told_and_is_noisy_everywhere() -> None:
    for name in get_args(SplitName):
        schedule = branch_grpo(splits=name)
        assert (len(schedule.splits), schedule.leaves, schedule.sibling_spread) == (4, 16, 4.0)
        assert noisy(schedule) == list(range(19))
    assert branch_grpo(splits={1: 3, 4: 2}).splits == {1: 3, 4: 2}
    assert list(branch_grpo(steps=40, splits="dense").splits) == [0, 6, 12, 18]
    with pytest.raises(ValueError, match="needs more than 5 steps"):
        branch_grpo(steps=5)


@pytest.mark.parametrize(("stride", "windows"), [(0, [0, 0, 0]), (2, [0, 2, 4])])
def test_branch_grpo_mix_is_noisy_at_splits_and_in_its_window(stride: int, windows: list[int]) -> None:
    for i, start in enumerate(windows):
        schedule = branch_grpo_mix(window_stride=stride, iteration=30 * i + 1)
        assert noisy(schedule) == sorted({0, 3, 6, 9} | set(range(start, start + 4)))
        assert schedule.splits == dict.fromkeys((0, 3, 6, 9), 2)


def test_a_stride_takes_fewer_steps_over_the_same_noise_levels() -> None:
    for stride in (1, 2, 3, 7, 30):
        schedule = branch_grpo_mix(window=1, ode_stride=stride)
        assert schedule.grid_steps == 20
        assert noisy(schedule) == [0, 3, 6, 9]
        strides = [step.stride for step in schedule.steps if not step.stochastic]
        assert sum(strides) == 16
        assert len(strides) == 3 * math.ceil(2 / stride) + math.ceil(10 / stride)
        assert max(strides) <= stride
        assert {step.kernel for step in schedule.steps if not step.stochastic} == {"ode" if stride == 1 else "dpm"}


def test_every_method_has_a_name_in_settings_and_a_recipe() -> None:
    assert set(get_args(Method)) == set(METHODS)
    assert set(get_args(SplitName)) == set(methods.SPLITS)
    for name, method in METHODS.items():
        settings = load_recipe(RECIPES / f"glyphs_{name}.yaml")
        assert settings.schedule.method == name
        given = settings.schedule.model_dump(exclude_none=True, exclude={"method", "max_nodes"})
        for iteration in (1, 4, 40):
            now = {"iteration": iteration, "seed": 3}
            known = {key: value for key, value in now.items() if key in (method.__kwdefaults__ or {})}
            assert settings.schedule.build(iteration, seed=3) == method(**given, **known)
        assert settings.schedule.build().leaves == 16
