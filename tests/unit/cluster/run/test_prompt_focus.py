"""Prompts drawn by what they still teach: known answers, and runs that go on as they would have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.planner import Plan, Planner
from branchgrpo.cluster.run.prompt_focus import reward_spread
from branchgrpo.cluster.run.prompt_order import places_of, training_and_held_out
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import RunSettings
from support import Settings, prompts_of

PROMPTS = [f"{number:02d}" for number in range(40)]
TEACHING = {"03": 1.0, "17": 3.0, "31": 1.0}
"""How far apart the rewards of these prompts' leaves lie; those of the others are equal."""


def scores(plan: Plan) -> dict[int, dict[str, np.ndarray]]:
    spread = np.resize([-1.0, 1.0], plan.schedule.leaves)
    return {
        tree: {"ocr": 5 + TEACHING.get(prompt, 0.0) * spread, "ocr_exact": np.arange(len(spread))}
        for tree, prompt in enumerate(plan.prompts)
    }


def planned(settings: RunSettings, iterations: int) -> list[list[str]]:
    planner, drawn = Planner(settings, PROMPTS), []
    for number in range(1, iterations + 1):
        plan = planner.plan(number)
        planner.record(plan, scores(plan))
        drawn.append(plan.prompts)
    return drawn


def test_without_focus_prompts_come_in_order(run_settings: Settings) -> None:
    assert planned(run_settings(), 12) == [prompts_of(number, PROMPTS, 4, seed=0) for number in range(1, 13)]


def test_what_teaches_is_drawn_and_nothing_twice(run_settings: Settings) -> None:
    drawn = planned(run_settings({"prompts.focus": 0.5}), 200)
    assert all(len(set(prompts)) == 4 for prompts in drawn)
    for number, prompts in enumerate(drawn, start=1):  # two are those of the order
        assert set(prompts_of(number, PROMPTS, 4, seed=0)[:2]) <= {*prompts}
    late = [prompt for prompts in drawn[50:] for prompt in prompts]
    assert sum(prompt in TEACHING for prompt in late) / len(late) > 0.45  # in order it would be 0.075
    assert {*late} == {*PROMPTS}  # the others are explored all the same
    assert planned(run_settings({"prompts.focus": 0.5}), 200) == drawn
    assert planned(run_settings({"prompts.focus": 0.5, "seed": 1}), 200) != drawn


def test_the_draw_is_in_proportion_to_the_spread(run_settings: Settings) -> None:
    """Of three prompts with weights 1, 3 and 1, one is drawn: the second with probability 0.6."""
    settings = run_settings({"prompts.focus": 0.25, "prompts.focus_decay": 0.999999, "iterations": 4000})
    planner = Planner(settings, PROMPTS)
    order = Plan(0, settings.schedule.build(), PROMPTS, [*range(40)])
    planner.record(order, scores(order))
    drawn = dict.fromkeys(TEACHING, 0)
    for number in range(1, 4001):
        prompts = planner.plan(number).prompts
        if not {*prompts_of(number, PROMPTS, 4, seed=0)[:3]} & {*TEACHING}:
            (one,) = {*prompts} & {*TEACHING}
            drawn[one] += 1
    share = np.array([*drawn.values()]) / sum(drawn.values())
    assert share == pytest.approx([0.2, 0.6, 0.2], abs=4 * np.sqrt(0.24 / sum(drawn.values())))


def test_the_newest_spread_counts_and_fades(run_settings: Settings) -> None:
    """Of two prompts that taught alike, the one seen two iterations later weighs four times as much."""
    settings = run_settings({"prompts.focus": 0.25, "prompts.focus_decay": 0.5})
    schedule, found = settings.schedule.build(), []
    for seed in range(300):
        planner = Planner(settings.model_copy(update={"seed": seed}), PROMPTS)
        for number, place, size in ((96, 17, 9.0), (97, 3, 1.0), (99, 17, 1.0), (98, 5, 1.0), (100, 5, 0.0)):
            leaves = size * np.arange(schedule.leaves)
            scored = {0: {"ocr": leaves, "ocr_exact": leaves}}
            planner.record(Plan(number, schedule, [PROMPTS[place]], [place]), scored)
        found += [*({*planner.plan(101).places} - {*places_of(101, 40, 4, seed)[:3]})]
    third, seventeenth = found.count(3), found.count(17)
    assert 5 not in found  # it teaches no more
    share = third / (third + seventeenth)
    assert share == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / (third + seventeenth)))


def test_rounding_is_no_spread() -> None:
    assert reward_spread(np.array([0.0, 1.0, 0.0, 1.0])) == 0.5
    assert reward_spread(np.array([0.3, 0.1 + 0.2])) == 0


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_checkpoint_goes_on_with_the_same_prompts(staleness: int, run_settings: Settings, tmp_path: Path) -> None:
    """With staleness, a run that goes on has planned the next iteration before it learns; one that resumes, after."""
    settings = run_settings({"prompts.focus": 0.75, "execution": "ray", "staleness": staleness})
    planner = Planner(settings, PROMPTS)
    plans = {1: planner.plan(1)}
    for number in range(1, 30):
        if staleness:
            plans[number + 1] = planner.plan(number + 1)
        planner.record(plans[number], scores(plans[number]))
        (tmp_path / str(number)).mkdir()
        planner.save(tmp_path / str(number))
        if not staleness:
            plans[number + 1] = planner.plan(number + 1)
    in_order = prompts_of(25, PROMPTS, 4, seed=0)
    assert {*plans[25].prompts} != {*in_order}
    for number in (1, 9, 24):
        resumed = Planner(settings, PROMPTS)
        resumed.load(tmp_path / str(number))
        assert resumed.plan(number + 1) == plans[number + 1]
    of_others = Planner(settings, PROMPTS[::-1])
    of_others.load(tmp_path / "24")
    assert {*of_others.plan(25).prompts} == {*prompts_of(25, PROMPTS[::-1], 4, seed=0)}


def test_a_focused_run_goes_on_bit_by_bit(run_settings: Settings, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rewards": {"jpeg_compressibility": {}}, "prompts.focus": 0.75, "iterations": 4}
    settings = run_settings({**changes, "threads": 1})
    straight, first, resumed = (InProcessLoop(settings, PROMPTS) for _ in range(3))
    for number in range(1, 5):
        straight.iterate(number)
    for number in range(1, 3):
        first.iterate(number)
    first.save(tmp_path / "checkpoint")
    resumed.load(tmp_path / "checkpoint")
    for number in range(3, 5):
        resumed.iterate(number)
    for name, value in straight.learner.weights().items():
        assert torch.equal(resumed.learner.weights()[name], value)
    assert {*resumed.planner.plan(4).prompts} != {*prompts_of(4, PROMPTS, 4, seed=0)}


def test_more_prompts_per_iteration_than_there_are(run_settings: Settings) -> None:
    with pytest.raises(InputError, match=r"per_iteration is 16 of 14 prompts; with prompts.focus no prompt is twice"):
        training_and_held_out(run_settings({"prompts.focus": 0.5, "prompts.per_iteration": 16}))
