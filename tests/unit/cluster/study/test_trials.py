"""The runs of a study: budgets in iterations, the choice of tuned values, folders with other settings."""

from collections.abc import Callable

import pytest
from branchgrpo.cluster.study.file import Study
from branchgrpo.cluster.study.trials import Trial, chosen, must_continue, trials, tuning_trials
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.settings_errors import changed_settings, named_settings

SIZES = ("rollout.max_batch_rows", "learner.rows_per_micro_batch")
Load = Callable[..., Study]
RATES = [1e-4, 2e-4, 4e-4]
TUNED = {
    "variants": {"flat": {}, "tree": {"tune": {"learner.optimizer.learning_rate": RATES}}},
    "tuning": {"prompts": "validation.txt", "seeds": [7, 8]},
}


def held_out(trial: Trial) -> str:
    assert trial.settings.prompts.held_out
    return trial.settings.prompts.held_out.name


def test_budgets_are_counted_in_iterations(study_in: Load, timed: Callable[..., None]) -> None:
    def iterations(study: Study) -> list[int]:
        return [trial.settings.iterations for trial in trials(study)]

    assert iterations(study_in(budget={"iterations": 3})) == [3, 3, 3, 3]
    per_iteration = {"flat": 8 * 16 * 16, "tree": 8 * (3 * 2 + 3 * 4 + 3 * 8 + 6 * 16 + 1)}  # splits at 0, 3, 6, 9
    study = study_in(budget={"forward_passes": 20_000})
    counted = [trial.settings.schedule.build().forward_passes * 8 for trial in trials(study)]
    assert iterations(study) == [20_000 // count for count in counted]
    assert counted[0] == per_iteration["flat"]
    study = study_in(budget={"seconds": 10.0})
    with pytest.raises(InputError, match="measured seconds per iteration"):
        trials(study)
    timed(study, flat=3.0, tree=0.5)
    assert iterations(study) == [3, 3, 20, 20]


def test_values_are_chosen_by_validation_rewards(study_in: Load, made_up: Callable[..., None]) -> None:
    study = study_in(**TUNED)
    tuned = list(tuning_trials(study, "tree"))
    assert [run.settings.seed for _, runs in tuned for run in runs] == [7, 8] * 3
    rewards = {1e-4: [0.1, *[0.3] * 4], 2e-4: [0.1, *[0.5] * 4], 4e-4: [0.9] * 5}
    for candidate, runs in tuned:
        assert chosen(study, "tree") is None
        rate = candidate.values["learner.optimizer.learning_rate"]
        for run in runs:
            assert held_out(run) == "validation.txt"
            made_up(run, rewards[rate], "failed" if (rate, run.settings.seed) == (4e-4, 8) else "finished")
    taken = chosen(study, "tree")
    assert taken
    assert taken.values == {"learner.optimizer.learning_rate": 2e-4}
    runs = [trial for trial in trials(study) if trial.variant == "tree"]
    assert [(run.settings.learner.optimizer.learning_rate, run.settings.seed) for run in runs] == [(2e-4, 0), (2e-4, 1)]
    assert {held_out(run) for run in runs} == {"glyphs_held_out.txt"}


def test_a_larger_budget_of_tuning_is_spent(study_in: Load, made_up: Callable[..., None]) -> None:
    for _, runs in tuning_trials(study_in(**TUNED), "tree"):
        for run in runs:
            made_up(run, [0.1, 0.2, 0.3, 0.4, 0.5])
    for iterations, ended in ((4, True), (5, False)):
        tuning = {**TUNED["tuning"], "budget": {"iterations": iterations}}
        assert bool(chosen(study_in(**TUNED | {"tuning": tuning}), "tree")) is ended


def test_folder_with_other_settings_is_refused(study_in: Load) -> None:
    before = trials(study_in())[2]
    save_recipe(before.settings, before.folder.path)
    before.must_continue()
    trials(study_in(budget={"iterations": 9}))[2].must_continue()
    must_continue(study_in())
    other = study_in(variants={"flat": {}, "tree": {"learner.clip_range": 0.3}})
    with pytest.raises(InputError, match=r"other settings than .*tree-seed0 \(learner.clip_range: 0.01 -> 0.3\)"):
        must_continue(other)


def test_a_run_continues_with_the_sizes_that_it_chose(study_in: Load) -> None:
    study = study_in(common={"execution": "ray", "evaluation.every": 1, **dict.fromkeys(SIZES, "auto")})
    trial = trials(study)[0]
    trial.must_continue()
    save_recipe(changed_settings(trial.settings, {SIZES[0]: 64, SIZES[1]: 8}), trial.folder.path)
    trial.must_continue()


def test_runs_that_are_tuned_have_the_sizes_that_are_timed(study_in: Load) -> None:
    study = study_in(**TUNED, common={"execution": "in_process", "evaluation.every": 1, SIZES[0]: "auto"})
    for candidate, runs in tuning_trials(study, "tree"):
        sizes = named_settings(candidate.settings, SIZES)
        assert all(named_settings(run.settings, SIZES) == sizes and not run.settings.automatic for run in runs)
