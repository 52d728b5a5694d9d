"""How many workers a run wants: known answers, and what must hold whatever is observed."""

import pytest
from branchgrpo.cluster.on_ray.autoscaling import SLOWDOWN_RATIO, IterationTiming, workers_wanted
from hypothesis import given
from hypothesis import strategies as st


def observed(workers: int, **changes: float) -> IterationTiming:
    """Sixteen tasks of a second each, then two seconds of learning, all of the sampling waited for."""
    sampling = -(-16 // workers) * 1.0
    values = {"tasks": 16, "task_seconds": 1.0, "seconds": sampling + 2.0, "waited": sampling, **changes}
    return IterationTiming(workers, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_the_seconds_that_are_predicted(workers: int) -> None:
    for other in (1, 2, 3, 4, 8, 16):
        assert observed(workers).predicted(other) == pytest.approx(-(-16 // other) + 2.0)


@pytest.mark.parametrize(
    ("most", "wanted"),
    [
        (8, 8),  # 2 tasks each; seven workers would take 3 s
        (15, 8),  # 15 workers have up to 2 tasks each as well
        (40, 16),  # no more than there are tasks
    ],
)
def test_as_many_as_help(most: int, wanted: int) -> None:
    assert workers_wanted(observed(2), 1, most) == wanted


def test_a_learner_that_never_waits_needs_no_more_workers() -> None:
    assert workers_wanted(observed(4, waited=0.0, seconds=100.0), 1, 16) == 2  # with one, sampling adds 12 s to 100


def test_workers_that_wait_for_scores_are_not_helped_by_more() -> None:
    assert workers_wanted(observed(4, task_seconds=0.01, seconds=30.0, waited=28.0), 1, 16) == 1


@given(
    workers=st.integers(1, 64),
    tasks=st.integers(1, 200),
    task_seconds=st.floats(0, 100),
    learning=st.floats(0.1, 1000),
    hidden=st.floats(0, 1),
    least=st.integers(1, 10),
    more=st.integers(0, 60),
)
def test_what_must_hold(
    workers: int, tasks: int, task_seconds: float, learning: float, hidden: float, least: int, more: int
) -> None:
    sampling = task_seconds * -(-tasks // workers)
    seen = IterationTiming(workers, tasks, task_seconds, learning + sampling, (1 - hidden) * sampling)
    most = least + more
    wanted = workers_wanted(seen, least, most)
    assert least <= wanted <= most
    best = seen.predicted(most)
    assert seen.predicted(wanted) <= (1 + SLOWDOWN_RATIO) * best
    assert all(seen.predicted(fewer) > (1 + SLOWDOWN_RATIO) * best for fewer in range(least, wanted))
    assert seen.predicted(most) <= seen.predicted(least) + 1e-9
