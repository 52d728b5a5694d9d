"""What Ray reserves for the runs of a study, and what is checked before they begin."""

from pathlib import Path

import pytest
from branchgrpo.cluster.commands.study import _tune_and_run, most_at_once, resources_of
from branchgrpo.cluster.study.file import Study, load_study
from branchgrpo.cluster.study.trials import Trial, tuning_trials
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.yaml12 import write_yaml
from rich.console import Console
from support import Settings


@pytest.mark.parametrize(
    ("cluster", "reserved"),
    [
        ({"memory": 1e9}, {"CPU": 3}),  # of a Ray cluster whose nodes with CPUs are still to come
        ({"CPU": 2.0}, {"CPU": 2}),
        ({"CPU": 8.0, "GPU": 1.0}, {"CPU": 3, "GPU": 1}),
    ],
    ids=["nothing yet", "few CPUs", "a GPU"],
)
def test_a_run_reserves_what_it_needs_and_there_is(
    run_settings: Settings, cluster: dict[str, float], reserved: dict[str, float]
) -> None:
    settings = run_settings({"threads": 3, "policy.device": "auto"})
    assert resources_of(settings, None, cluster) == reserved
    assert resources_of(settings, {"CPU": 1.0}, cluster) == {"CPU": 1.0}


@pytest.mark.parametrize(("cores", "runs"), [(0, 1), (4, 1), (22, 10), (33, 15)])
def test_as_many_runs_at_once_as_there_is_room_for(run_settings: Settings, cores: int, runs: int) -> None:
    pools = {"learner": {"cpus": 1}, "rollout_workers": {"cpus": 1}, "rewards": {"ocr": {"cpus": 0.2}}}
    trial = Trial("small", {}, run_settings({"execution": "ray", "pools": pools}))
    assert most_at_once([trial, trial], {"CPU": cores}) == runs
    assert most_at_once([Trial("small", {}, run_settings())], {"CPU": cores}) is None


def test_values_are_not_chosen_by_runs_with_other_settings(tmp_path: Path) -> None:
    (tmp_path / "validation.txt").write_text("3111\n3222\n")
    content = {
        "base": "glyphs",
        "variants": {"tree": {"tune": {"learner.optimizer.learning_rate": [1e-4, 2e-4]}}},
        "seeds": [0],
        "budget": {"iterations": 1},
        "reward": "ocr",
        "baseline": "tree",
        "tuning": {"prompts": "validation.txt"},
    }

    def study(clip: float) -> Study:
        common = {"execution": "in_process", "evaluation.every": 1, "learner.clip_range": clip}
        (tmp_path / "small.yaml").write_text(write_yaml({**content, "common": common}))
        return load_study(tmp_path / "small.yaml", tmp_path / "out")

    for _, (run,) in tuning_trials(study(0.1), "tree"):
        save_recipe(run.settings, run.folder.path)
        run.folder.append("metrics", {"iteration": 1})
        run.folder.append("evaluations", {"iteration": 1, "ocr": 0.5})
        (run.folder.path / "state.json").write_text('{"state": "finished"}')
    with pytest.raises(InputError, match=r"tree-learning_rate-0.0001-seed1000 \(learner.clip_range: 0.1 -> 0.2\)"):
        _tune_and_run(study(0.2), Console())
