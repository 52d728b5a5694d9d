"""Alarms: what each run of known figures is told of, and that a good run is told of nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from branchgrpo.cluster.view.alarms import alarms
from run_folders import line

WEIGHTS = {"ocr": 1.0, "ocr_exact": 0.0}
Figures = Callable[[int], dict[str, Any]]


def reward(mean: float, std: float = 0.3) -> dict[str, float]:
    return {"mean": mean, "std": std, "min": 0.0, "max": 1.0}


def rising(number: int) -> dict[str, Any]:
    """Rewards that rise together, from 0.3 by 0.01 each iteration."""
    mean = 0.3 + 0.01 * number
    return {"rewards": {"ocr": reward(mean), "ocr_exact": reward(mean)}}


def titles(
    figures: Figures, iterations: int = 40, held_out: Sequence[float] = (), weight: float = 1.0, stale: bool = False
) -> list[tuple[int, str]]:
    """The alarms of a run that is evaluated every four iterations."""
    metrics = [line(number, **(rising(number) | figures(number))) for number in range(1, iterations + 1)]
    evaluations = [{"iteration": 4 * i, "ocr": mean} for i, mean in enumerate(held_out)]
    found = alarms(metrics, evaluations, WEIGHTS | {"ocr": weight}, clip_range=1e-2, stale=stale)
    return [(alarm.iteration, alarm.title) for alarm in found]


def test_a_run_that_learns_is_told_of_nothing() -> None:
    assert titles(lambda number: {}) == []


def test_a_reward_that_stays_where_it_was_is_flat() -> None:
    noise = [0.02, -0.02, 0.01, -0.01]
    assert titles(lambda number: {"rewards": {"ocr": reward(0.5 + noise[number % 4])}}) == [(40, "The reward is flat")]
    compared = titles(lambda number: {"rewards": {"ocr": reward(0.5 + 1e-12 * (number % 2))}})
    assert compared == [], "a reward that compares the leaves of trees can't rise"


def test_leaves_with_equal_scores_teach_nothing() -> None:
    same = {"rewards": {"ocr": reward(1.0, std=0.0)}}
    assert titles(lambda number: same if number >= 20 else {}) == [(20, "All leaves get the same reward")]


def test_a_fall_on_held_out_prompts_is_told_of_at_once() -> None:
    """Half of the leaves' deviation is 0.15."""
    assert titles(lambda number: {}, held_out=[0.6, 0.5, 0.46]) == []
    assert titles(lambda number: {}, held_out=[0.6, 0.5, 0.44, 0.1]) == [(8, "The reward has fallen")]
    assert titles(lambda number: {}, held_out=[-0.6, -0.4], weight=-1.0) == [(4, "The reward has fallen")]


def test_a_fall_is_seen_without_held_out_prompts_too() -> None:
    """By 0.02 each iteration: the mean of five is 0.16 below that of the first five after eight more of them."""
    falling = {number: {"rewards": {"ocr": reward(1.0 - 0.02 * number)}} for number in range(1, 41)}
    assert titles(lambda number: falling[number]) == [(13, "The reward has fallen")]


def test_what_has_fallen_to_nothing_is_told_with_its_value() -> None:
    nothing = {"rewards": {"ocr": reward(0.0, std=0.0)}}
    metrics = [line(number, **(nothing if number > 8 else {})) for number in range(1, 21)]
    same, fallen = alarms(metrics, [], WEIGHTS, clip_range=1e-2)
    assert (same.iteration, same.title) == (9, "All leaves get the same reward")
    assert "(0.000 at first)" in same.text
    # Two of five are nothing: the mean is 0.3, where it began at 0.5, and half a deviation is 0.15.
    assert (fallen.iteration, fallen.title) == (10, "The reward has fallen")
    assert "is 0.300, and it began at 0.500" in fallen.text


def test_a_watched_reward_that_falls_shows_a_gamed_one() -> None:
    """From iteration 10 on the watched one falls by 0.02: by half its deviation, 0.15, in the mean of five, when it has
    fallen by 0.16 in the middle one of them, which is 18."""
    falls = {number: reward(0.5 - 0.02 * max(0, number - 10)) for number in range(1, 41)}
    found = titles(lambda number: {"rewards": {"ocr": rising(number)["rewards"]["ocr"], "ocr_exact": falls[number]}})
    # The trained one, rising by 0.01, is half a deviation up only 15 iterations after the middle of the first five.
    assert found == [(20, "The reward may be gamed")]


def test_log_probabilities_apart_are_told_of_at_once() -> None:
    assert titles(lambda number: {"logprob_abs_diff": 2e-3 if number == 7 else 1e-7}) == [
        (7, "Log-probabilities are apart")
    ]


def test_trees_of_older_weights_have_other_log_probabilities() -> None:
    """With staleness only the first iteration's trees are sampled with the learner's weights."""
    assert titles(lambda number: {"logprob_abs_diff": 2e-3 if number > 1 else 0.0}, stale=True) == []
    assert titles(lambda number: {"logprob_abs_diff": 2e-3}, stale=True) == [(1, "Log-probabilities are apart")]


def test_half_the_diversity_is_a_collapse() -> None:
    found = titles(lambda number: {"diversity": 0.1 if number < 20 else 0.01})
    # The mean of five is below half with three of the new ones: (2 * 0.1 + 3 * 0.01) / 5 = 0.046.
    assert found == [(22, "Diversity has collapsed")]


def test_clipping_of_most_edges_is_told_of_when_it_lasts() -> None:
    assert titles(lambda number: {"clip_fraction": 0.8 if number in (5, 6) else 0.1}) == []
    assert titles(lambda number: {"clip_fraction": 0.8 if number > 30 else 0.1}) == [(31, "Most edges are clipped")]


@pytest.mark.parametrize("broken", [{}, {"rewards": None}, {"rewards": {"ocr": 3}}, {"diversity": "x"}])
def test_lines_without_figures_raise_no_alarm(broken: dict[str, Any]) -> None:
    metrics = [{"iteration": number, **broken} for number in range(1, 30)]
    assert alarms(metrics, metrics, WEIGHTS, None) == []


@pytest.mark.parametrize("evaluated", [False, True])
def test_each_line_is_looked_at_a_few_times(evaluated: bool) -> None:
    """However many iterations there are: a run may have thousands, and its page is made again after each."""
    looks = 0

    class Counted(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            nonlocal looks
            looks += 1
            return super().get(key, default)

    def looks_at(iterations: int) -> float:
        nonlocal looks
        looks = 0
        metrics = [Counted(line(number, **rising(number))) for number in range(1, iterations + 1)]
        evaluations = [{"iteration": number, "ocr": 0.5} for number in range(evaluated * iterations)]
        alarms(metrics, evaluations, WEIGHTS, clip_range=1e-2)
        return looks / iterations

    assert looks_at(200) == pytest.approx(looks_at(100), rel=0.1)
