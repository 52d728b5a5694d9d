"""Falls of the held-out reward are told from noise."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run.checkpoints import check, written
from branchgrpo.cluster.run.evaluation import Evaluation, evaluation_file
from branchgrpo.cluster.run.falls import Fall, find_fall, undo_fall
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.checkpoint_files import LEARNER
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.settings import RunSettings
from support import Settings

UNDONE = {"evaluation.every": 1, "checkpoint.keep_best": {}, "evaluation.undo_falls": {}}


told: list[tuple[str, str]] = []
"""Damaged checkpoints of this test, and why."""


@pytest.fixture(autouse=True)
def none_told() -> None:
    told.clear()


def evaluated(
    settings: RunSettings,
    rewards: Sequence[Sequence[float]],
    broken: Callable[[RunFolder], Sequence[Path]] | None = None,
) -> Fall | None:
    """What is found after evaluations of iterations 0, 1 and so on with these rewards of each picture, without the
    `broken` files of the run."""
    with RunFolder.create(settings) as run:
        for iteration, own in enumerate(rewards):
            media = Media(pictures=np.zeros((len(own), 1, 2, 2, 3), np.uint8))
            scores = {"ocr": np.array(own), "ocr_exact": np.zeros(len(own))}
            run.add_evaluation(iteration, Evaluation([f"{n}" for n in range(len(own))], media, scores), {})
            if 0 < iteration < len(rewards) - 1:
                with written(run.checkpoint(iteration)) as temporary:
                    (temporary / LEARNER).write_text("{}")
        for path in broken(run) if broken else ():
            path.unlink()
        return find_fall(run, settings, lambda aside, why: told.append((aside.name, why)))


def right(count: int, of: int = 100) -> list[float]:
    """Scores of pictures, the first of which are right."""
    return [1.0] * count + [0.0] * (of - count)


def test_a_fall_names_where_it_began(run_settings: Settings) -> None:
    found = evaluated(run_settings(UNDONE), [right(20), right(50), right(70), right(69), right(40)])
    assert found == Fall(4, 2, pytest.approx(0.7), pytest.approx(0.4))


@pytest.mark.parametrize(
    ("rewards", "fell"),
    [
        ([right(20), right(60), right(45)], True),  # 15 pictures: 0.15, and 0.036 of error
        ([right(20), right(60), right(49)], False),  # 11 of the 40 that it gained
        ([right(20), right(60), right(47)], True),  # 13 of them are more than 0.3
        ([right(20), right(28), right(24)], False),  # half of the gain, and within its error
        ([right(20), right(20), right(5)], True),  # nothing was gained, and something is lost
        ([right(50), right(20), right(19)], False),  # it never rose
        ([right(0, 1), right(1, 1), right(0, 1)], False),  # one picture has no error
    ],
)
def test_chance_is_no_fall(rewards: list[list[float]], fell: bool, run_settings: Settings) -> None:
    assert bool(evaluated(run_settings(UNDONE), rewards)) == fell


def test_falls_are_looked_for_where_they_are_to_be_undone(run_settings: Settings) -> None:
    settings = run_settings({"evaluation.every": 1, "checkpoint.keep_best": {}})
    assert evaluated(settings, [right(20), right(80), right(0)]) is None
    with pytest.raises(InputError, match="evaluation.undo_falls returns to the best checkpoint; give checkpoint.keep"):
        run_settings({"evaluation.every": 1, "evaluation.undo_falls": {}})


FALLEN = [right(20), right(50), right(70), right(45)]


def test_a_damaged_best_checkpoint_is_not_returned_to(run_settings: Settings) -> None:
    found = evaluated(run_settings(UNDONE), FALLEN, lambda run: [run.checkpoint(2) / LEARNER])
    assert found is None, "the next best isn't far enough above"
    assert told == [("damaged-iteration-000002", f"{LEARNER} is missing")]
    found = evaluated(
        run_settings({**UNDONE, "name": "far"}), [*FALLEN[:3], right(20)], lambda run: [run.checkpoint(2) / LEARNER]
    )
    assert found == Fall(3, 1, pytest.approx(0.5), pytest.approx(0.2))


@pytest.mark.parametrize(("gone", "best"), [(0, 2), (2, 1)])
def test_a_fall_is_found_without_removed_pictures(gone: int, best: int, run_settings: Settings) -> None:
    def removed(run: RunFolder) -> list[Path]:
        return [run.path / evaluation_file(line) for line in run.lines("evaluations") if line["iteration"] == gone]

    found = evaluated(run_settings(UNDONE), [*FALLEN[:3], right(20)], removed)
    assert (found and found.best, told) == (best, [])


def test_every_fall_slows_the_run(run_settings: Settings) -> None:
    """Also one that goes back to the same weights as the one before."""
    settings = run_settings(UNDONE)
    with RunFolder.create(settings) as run:
        with written(run.checkpoint(1)) as temporary:
            (temporary / "engine").mkdir()
            (temporary / "engine" / "states.pt").write_bytes(b"abc")
            (temporary / LEARNER).write_text('{"version": 1, "ranks": 2}')
        for fallen, pace in ((4, 0.5), (6, 0.25)):
            assert undo_fall(run, settings, Fall(fallen, 1, 0.7, 0.4)) == pace
            assert json.loads((run.checkpoint(fallen) / LEARNER).read_text()) == {
                "version": fallen,
                "pace": pace,
                "ranks": 2,
            }
            assert (run.checkpoint(fallen) / "engine" / "states.pt").read_bytes() == b"abc"
        for iteration in (1, 4, 6):
            check(run.checkpoint(iteration))
        assert (run.checkpoint(1) / LEARNER).read_text() == '{"version": 1, "ranks": 2}'
