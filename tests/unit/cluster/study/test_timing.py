"""The seconds of a study: variants are compared by what was measured of all of them in turns."""

import json
from collections.abc import Callable

import pytest
from branchgrpo.cluster.study.file import Study
from branchgrpo.cluster.study.timing import seconds_per_iteration, timing_name, to_measure
from branchgrpo.cluster.study.trials import trials
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.settings_errors import changed_settings

Load = Callable[..., Study]
VARIANTS = {
    "flat": {"schedule": {"method": "dance_grpo", "steps": 16, "group": 16}, "advantage.normaliser": "group"},
    "tree": {},
}


def test_a_new_variant_has_all_measured_anew(study_in: Load, timed: Callable[..., None]) -> None:
    study = study_in(timing_rounds=1)
    timed(study, flat=3.0, tree=0.5)
    assert to_measure(study) == []
    wider = study_in(timing_rounds=1, variants={**VARIANTS, "wide": {"schedule.roots": 2}})
    assert len(to_measure(wider)) == 3, "the others' seconds are of another hour"
    timed(wider, flat=6.0, tree=1.0, wide=2.0)
    flat = wider.variants["flat"][0].settings
    assert [seconds_per_iteration(wider, flat), seconds_per_iteration(study, flat)] == [6.0, 6.0]
    assert to_measure(study) == [], "those who are left were measured together"


def test_what_costs_nothing_shares_its_measurement(study_in: Load) -> None:
    nft = {**VARIANTS["flat"], "learner.objective": "nft"}
    bold = {**nft, "learner.nft.strength": 0.25, "learner.optimizer.learning_rate": 1e-4}
    study = study_in(variants={"flat": nft, "bold": bold}, timing_rounds=1)
    assert len(to_measure(study)) == 1


@pytest.mark.parametrize(("execution", "shared"), [("in_process", True), ("ray", False)])
def test_pools_cost_seconds_on_ray_alone(study_in: Load, execution: str, shared: bool) -> None:
    wide = {"pools.rollout_workers.count": 3}
    study = study_in(common={"execution": execution, "evaluation.every": 1}, variants={"flat": {}, "wide": wide})
    names = {timing_name(study.variants[name][0].settings) for name in ("flat", "wide")}
    assert (len(names) == 1) is shared


def test_runs_that_chose_sizes_have_seconds_of_their_own(study_in: Load, made_up: Callable[..., None]) -> None:
    rows, seconds = "rollout.max_batch_rows", {"flat": 2.0, "fixed": 3.0}
    common = {"execution": "ray", "evaluation.every": 1, rows: "auto"}
    study = study_in(common=common, variants={"flat": {}, "fixed": {rows: 64}})
    for trial in trials(study):
        made_up(trial, [0.1, 0.2])
        save_recipe(changed_settings(trial.settings, {rows: 64}), trial.folder.path)
        line = {"iteration": 1, "seconds": seconds[trial.variant]}
        (trial.folder.path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert {t.variant: seconds_per_iteration(study, t.settings) for t in trials(study)} == seconds
