"""Runs that another study has made: what is taken over, and what isn't."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from branchgrpo.cluster.run.driver_lock import driver_lock
from branchgrpo.cluster.run.new_folder import FINGERPRINTS, VERSIONS, begin, policy_fingerprint, versions
from branchgrpo.cluster.study.curves import read_curve
from branchgrpo.cluster.study.file import Study
from branchgrpo.cluster.study.shared_runs import finished_runs, take_over
from branchgrpo.cluster.study.trials import Trial, trials
from branchgrpo.proto.recipe import save_recipe

Load = Callable[..., Study]
REWARDS = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.fixture
def made(study_in: Load, made_up: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Makes up the first run of another study, with replacements of its keys, and returns its folder."""

    def make(state: str = "finished", **changes: object) -> Path:
        trial = trials(replace(study_in(**changes), folder=tmp_path / "other"))[0]
        made_up(trial, REWARDS, state)
        path = save_recipe(trial.settings, trial.folder.path).parent
        (path / VERSIONS).write_text(json.dumps(versions()))
        (path / FINGERPRINTS).write_text(json.dumps({"policy": policy_fingerprint(trial.settings)}))
        return path

    return make


def first(study: Study) -> Trial:
    return trials(study)[0]


def test_run_of_another_study_is_taken_over(study_in: Load, made: Callable[..., Path], tmp_path: Path) -> None:
    path = made(baseline="often", variants={"often": {}})
    seldom = {"execution": "in_process", "evaluation.every": 2}
    study = study_in(common=seldom, variants={"tree": {}}, baseline="tree", budget={"iterations": 3})
    trial = first(study)
    assert take_over(trial, finished_runs(tmp_path)) == path
    assert trial.finished
    trial.must_continue()
    assert (trial.folder.settings.name, trial.folder.settings.runs) == ("tree-seed0", tmp_path / "out" / "runs")
    reported = [REWARDS[0], REWARDS[2], REWARDS[3]]
    assert list(read_curve(study, trial).reward) == reported, "within the budget, and as often as the study evaluates"
    assert take_over(trial, finished_runs(tmp_path)) is None, "what is there stays"


@pytest.mark.parametrize(("iterations", "taken"), [(2, True), (3, False), (4, True)])
def test_run_without_the_last_evaluation_is_not_taken(
    study_in: Load, made: Callable[..., Path], iterations: int, taken: bool, tmp_path: Path
) -> None:
    same = {"common": {"execution": "in_process", "evaluation.every": 2}, "variants": {"flat": {}}}
    evaluations = made(**same) / "evaluations.jsonl"
    lines = evaluations.read_text().splitlines(keepends=True)
    evaluations.write_text("".join(lines[::2]))  # of iterations 0, 2 and 4
    trial = first(study_in(**same, budget={"iterations": iterations}))
    assert bool(take_over(trial, finished_runs(tmp_path))) is taken


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "stopped"},
        {"seeds": [1, 0]},
        {"common": {"execution": "in_process", "evaluation.every": 2}},
        {"variants": {"flat": {"learner.clip_range": 0.3}}},
        {"variants": {"flat": {"policy.precision": "bfloat16", "learner.zero_stage": 1}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_run_that_would_be_another_is_not_taken(
    study_in: Load, made: Callable[..., Path], changes: dict[str, object], tmp_path: Path
) -> None:
    same = {"variants": {"flat": {}}}
    made(**{**same, **changes})
    assert take_over(first(study_in(**same)), finished_runs(tmp_path)) is None


def test_trees_may_be_described_in_other_words(study_in: Load, made: Callable[..., Path], tmp_path: Path) -> None:
    schedule = {"steps": 16, "eta": 0.7, "splits": {0: 2, 3: 2, 6: 2, 9: 2}}
    path = made(variants={"flat": {"schedule": schedule}})
    for spread, taken in ((2.0, None), (4.0, path)):
        study = study_in(variants={"flat": {"schedule": {**schedule, "sibling_spread": spread}}})
        assert take_over(first(study), finished_runs(tmp_path)) == taken
    first(study).must_continue()


@pytest.mark.parametrize("falls", [None, {}])
def test_undone_falls_depend_on_when_runs_are_evaluated(
    study_in: Load, made: Callable[..., Path], falls: dict[str, object] | None, tmp_path: Path
) -> None:
    common = {"execution": "in_process", "checkpoint.keep_best": {}, "evaluation.undo_falls": falls}
    made(variants={"flat": {}}, common=common | {"evaluation.every": 1})
    for every, taken in ((2, falls is None), (1, True)):
        study = study_in(variants={"flat": {}}, common=common | {"evaluation.every": every})
        assert bool(take_over(first(replace(study, folder=tmp_path / str(every))), finished_runs(tmp_path))) is taken


@pytest.mark.parametrize(("schedule", "taken"), [("constant", True), ("cosine", False)])
def test_planned_rates_depend_on_the_number_of_iterations(
    study_in: Load, made: Callable[..., Path], schedule: str, taken: bool, tmp_path: Path
) -> None:
    same = {"variants": {"flat": {"learner.optimizer.schedule": schedule}}}
    made(**same)
    assert bool(take_over(first(study_in(**same, budget={"iterations": 2})), finished_runs(tmp_path))) is taken


def test_sizes_that_a_run_chose_are_taken_over(study_in: Load, made: Callable[..., Path], tmp_path: Path) -> None:
    automatic = {"execution": "ray", "evaluation.every": 1, "rollout.max_batch_rows": "auto"}
    path = made(common={**automatic, "rollout.max_batch_rows": 64})
    trial = first(study_in(common=automatic))
    assert take_over(trial, finished_runs(tmp_path)) == path
    trial.must_continue()


def test_run_of_another_policy_is_not_taken(study_in: Load, made: Callable[..., Path], tmp_path: Path) -> None:
    (made() / FINGERPRINTS).write_text(json.dumps({"policy": "another"}))
    assert take_over(first(study_in()), finished_runs(tmp_path)) is None


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
@pytest.mark.parametrize("name", [FINGERPRINTS, VERSIONS, "recipe.yaml", "metrics.jsonl", "evaluations.jsonl"])
def test_unreadable_folder_is_passed_over(
    study_in: Load, made: Callable[..., Path], name: str, content: str | None, tmp_path: Path
) -> None:
    file = made() / name
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert take_over(first(study_in()), finished_runs(tmp_path)) is None


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_killed_driver_left_is_replaced_or_continued(
    study_in: Load, made: Callable[..., Path], begun: bool, tmp_path: Path
) -> None:
    path, trial = made(), first(study_in())
    folder = trial.folder.path
    folder.mkdir(parents=True)
    with driver_lock(folder):
        begin(folder, trial.settings)
    if not begun:
        (folder / "recipe.yaml").unlink()
    assert take_over(trial, finished_runs(tmp_path)) == (None if begun else path)
    assert trial.finished is not begun


def test_run_of_other_versions_is_not_taken(study_in: Load, made: Callable[..., Path], tmp_path: Path) -> None:
    (made() / VERSIONS).write_text(json.dumps({**versions(), "torch": "1.0"}))
    assert take_over(first(study_in()), finished_runs(tmp_path)) is None


LINUX = "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36"


@pytest.mark.parametrize(
    ("here", "taken"),
    [
        ("Linux-6.12.4-x86_64-with-glibc2.36", True),
        ("Linux-6.1.0-13-amd64-aarch64-with-glibc2.36", False),
        ("Linux-6.1.0-13-amd64-x86_64-with-glibc2.31", False),
        ("macOS-14.5-arm64-arm-64bit", False),
    ],
)
def test_another_kernel_makes_no_other_run(
    study_in: Load, made: Callable[..., Path], here: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.platform", lambda: LINUX)
    path = made()
    monkeypatch.setattr("platform.platform", lambda: here)
    assert take_over(first(study_in()), finished_runs(tmp_path)) == (path if taken else None)
