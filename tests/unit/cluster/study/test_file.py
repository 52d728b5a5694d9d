"""Study files: what they mean, and one clear line per mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.study.file import Study, load_study
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import SHIPPED

Load = Callable[..., Study]
TUNED: dict[str, Any] = {"tune": {"learner.optimizer.learning_rate": [1e-4, 2e-4]}}
IN_PROCESS = {"execution": "in_process", "evaluation.every": 1}
ON_RAY = {**IN_PROCESS, "execution": "ray"}


def test_variants_are_recipes_on_the_base(study_in: Load) -> None:
    study = study_in(common={**IN_PROCESS, "learner": {"clip_range": 0.5}, "schedule": {"steps": 16, "roots": 2}})
    flat, tree = (study.variants[name][0].settings for name in ("flat", "tree"))
    assert (flat.schedule.method, flat.schedule.roots) == ("dance_grpo", None)
    assert (tree.schedule.method, tree.schedule.roots) == ("branch_grpo", 2)
    assert tree.learner.clip_range == flat.learner.clip_range == 0.5
    assert tree.learner.updates_per_iteration == 2, "of the base"
    assert tree.threads == 1
    assert tree.prompts.held_out
    assert tree.prompts.held_out.is_file()


def test_a_tuned_variant_has_a_candidate_per_value(study_in: Load) -> None:
    tuning = {"prompts": "validation.txt"}
    study = study_in(common={**IN_PROCESS, **TUNED}, variants={"flat": {}, "tree": {"tune": {}}}, tuning=tuning)
    rates = [candidate.settings.learner.optimizer.learning_rate for candidate in study.variants["flat"]]
    assert rates == [1e-4, 2e-4]
    first = study.variants["flat"][0]
    assert first.validation
    assert first.validation.prompts.held_out != first.settings.prompts.held_out
    assert len(study.variants["tree"]) == 1, "its own `tune` replaces the common one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgett": 3}, "unknown setting 'budgett'; did you mean 'budget'"),
        ({"budget": {}}, "budget: give one of iterations, forward_passes, seconds"),
        ({"budget": {"iterations": 3, "seconds": 2.0}}, "budget: give one of"),
        ({"common": ON_RAY, "budget": {"seconds": 9.0}}, "variants.flat,tree: budget is of seconds, which on Ray"),
        (
            {"common": {**ON_RAY, **TUNED}, "tuning": {"prompts": "validation.txt", "budget": {"seconds": 9.0}}},
            "variants.flat,tree: tuning.budget is of seconds",
        ),
        ({"baseline": "flatt"}, "baseline is 'flatt'; it must be one of flat, tree"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; a seed is given twice"),
        ({"tuning": {"prompts": "v.txt", "seeds": [5, 1]}}, "tuning.seeds has 1, one of seeds"),
        ({"base": "glyfs"}, "variants.flat,tree: recipe .*glyfs doesn't exist; did you mean 'glyphs'"),
        ({"reward": "orc"}, "variants.flat,tree: reward is 'orc'; the rewards of this recipe are ocr, ocr_exact"),
        ({"common": {**IN_PROCESS, "evaluation.every": 0}}, "variants.flat,tree: evaluation.every is 0"),
        ({"common": {**IN_PROCESS, "seed": 4}}, "variants.flat,tree: 'seed' is decided by seeds"),
        ({"variants": {"flat": {}, "tree": {"schedule.spltis": {}}}}, "variants.tree: unknown setting"),
        ({"variants": {"flat": {}, "tree": TUNED}}, "variants.tree: tune chooses values by prompts of its own"),
        ({"variants": {"flat": {}, "tree": {"tune": {"seed": 3}}}}, "variants.tree: tune is {'seed': 3}"),
        ({"variants": {"flat": {}, "tree": {"tune": {"seed": [3, 4]}}}}, "variants.tree: 'seed' is decided by seeds"),
        (
            {"common": {**IN_PROCESS, "tune": {"iterations": [9]}}},
            "variants.flat,tree: 'iterations' is decided by budget",
        ),
        ({"variants": {"flat": {}, "a/b": {}}}, "variants.a/b"),
        (
            {"variants": {"flat": {}, "tree": {"schedule.steps": 12}}},
            "variants.tree: its evaluations can't be compared",
        ),
        (
            {
                "variants": {"flat": {}, "tree": {"tune": {"learner.optimizer.learning_rate": ["fast"]}}},
                "tuning": {"prompts": "validation.txt"},
            },
            "variants.tree: learner.optimizer.learning_rate is 'fast'",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(study_in: Load, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[").replace("{", r"\{")) as caught:
        study_in(**changes)
    assert len(str(caught.value).splitlines()) == 1


def test_validation_prompts_are_not_held_out_ones(study_in: Load) -> None:
    held_out = study_in().variants["tree"][0].settings.prompts.held_out
    assert held_out
    with pytest.raises(InputError, match=r"tuning.prompts has 150 of the held-out prompts"):
        study_in(common={**IN_PROCESS, **TUNED}, tuning={"prompts": str(held_out)})


@pytest.mark.parametrize("path", sorted((SHIPPED.parent / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    assert len(load_study(path).file.seeds) >= 3, "an interval needs some"
