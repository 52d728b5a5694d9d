"""Submitting: what travels, and what is refused."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.commands.submit import check, stage_package, submit
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import load_recipe, save_recipe
from support import ROOT, Settings


def files_of_the_package() -> set[Path]:
    """What a wheel would hold, by pyproject.toml."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = {package: ["*.py", *setuptools["package-data"].get(package, [])] for package in setuptools["packages"]}
    return {
        file.relative_to(ROOT)
        for package, globs in patterns.items()
        for glob in globs
        for file in ROOT.joinpath(*package.split(".")[1:]).glob(glob)
        if file.is_file()
    }


def test_what_is_staged_is_what_a_wheel_would_hold(tmp_path: Path) -> None:
    staged = stage_package(tmp_path)
    assert staged.name == "branchgrpo"
    assert {file.relative_to(staged) for file in staged.rglob("*") if file.is_file()} == files_of_the_package()


def test_a_saved_recipe_brings_its_prompts(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings()
    save_recipe(settings, tmp_path / "here").parent.rename(tmp_path / "there")
    original = settings.prompts.train.read_text().split()
    settings.prompts.train.unlink()
    loaded = load_recipe(tmp_path / "there" / "recipe.yaml")
    assert loaded.prompts.train == tmp_path / "there" / "prompts" / "train.txt"
    assert loaded.prompts.train.read_text().split() == original
    assert loaded.model_copy(update={"prompts": settings.prompts}) == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": "runs"}, "runs is 'runs'; name an absolute folder that all nodes of the cluster share"),
        ({"policy.pretrained": "models/flux"}, "policy.pretrained is 'models/flux'; it must be .* an absolute path"),
        (
            {"policy.pretrained": "/tuned.safetensors", "policy.config": "models/flux"},
            "policy.config is 'models/flux', which isn't there; name an absolute path",
        ),
        (
            {"rollout.embeddings": "embeddings"},
            "rollout.embeddings is 'embeddings', which isn't there; name an absolute",
        ),
        ({"policy.device": "abacus"}, "policy.device is 'abacus'"),
        ({"execution": "in_process"}, "execution is 'in_process'; a run on a cluster needs execution 'ray'"),
        ({"rewards": {"beauty": {}}}, "unknown reward 'beauty'"),
        ({"pools.rewards": {"beauty": {}}}, "pools.rewards names 'beauty'"),
        ({"prompts.held_out": "/nowhere.txt"}, "prompts.held_out is '/nowhere.txt'; no such file"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(
    changes: dict[str, Any], message: str, run_settings: Settings
) -> None:
    with pytest.raises(InputError, match=message):
        check(run_settings({"execution": "ray", **changes}))


def test_what_only_the_cluster_may_have_is_left_to_it(run_settings: Settings) -> None:
    check(
        run_settings(
            {
                "execution": "ray",
                "policy.pretrained": "/only/on/the/cluster",
                "policy.device": "cuda",
                "rewards": {"mine": {"scorer": "only_on_the.cluster:load"}},
                "pools.rewards": {"mine": {"gpus": 1}},
            }
        )
    )


class Cluster:
    """Takes jobs, and looks into their working directory."""

    def submit_job(self, *, runtime_env: dict[str, Any], **job: str) -> str:
        folder = Path(runtime_env["working_dir"])
        self.files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        return job["submission_id"]


def test_code_may_have_the_name_of_the_prompts_folder(
    run_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code" / "prompts").mkdir(parents=True)
    (tmp_path / "code" / "prompts" / "__init__.py").write_text("def score(media, prompts): ...\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    cluster: Any = Cluster()
    submit(cluster, run_settings({"execution": "ray", "rewards": {"mine": {"function": "prompts:score"}}}))
    assert {"recipe.yaml", "prompts/__init__.py", "prompts/train.txt"} <= cluster.files


def test_prompts_are_the_same_wherever_they_lie(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings()
    with RunFolder.create(settings) as folder:
        folder.append("metrics", {"iteration": 1})
    moved = settings.prompts.train.rename(tmp_path / "moved.txt")
    prompts = settings.prompts.model_copy(update={"train": moved, "held_out": moved})
    settings = settings.model_copy(update={"prompts": prompts})
    with RunFolder.resume(settings) as folder:
        assert not [change for change in folder.changes if change.setting == "prompts.train"]
    moved.write_text(moved.read_text() + "\n999")
    with RunFolder.resume(settings) as folder:
        (change,) = [change for change in folder.changes if change.setting == "prompts.train"]
    assert (str(change.before)[:10], str(change.now)[:10]) == ("14 prompts", "15 prompts")
