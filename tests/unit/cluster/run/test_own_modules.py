"""Modules of the user's own are found without being run, and so are those that they import."""

import os
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.commands import submit
from branchgrpo.cluster.on_ray.placement import reward_demands
from branchgrpo.cluster.run.own_modules import JOB, check_modules, own_modules, travelling
from branchgrpo.proto.errors import InputError
from support import Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    (folder / "travels_package" / "inner").mkdir(parents=True)
    (folder / "travels_package" / "__init__.py").write_text("from . import inner\nimport travels_third")
    (folder / "travels_package" / "inner" / "__init__.py").write_text("import travels_module")
    (folder / "travels_third.py").write_text("import torch, json\n1 / 0")
    (folder / "travels_module.py").write_text("def f():\n    import travels_package, travels_lazily, not_there, broken")
    (folder / "travels_lazily.py").write_text("import branchgrpo, numpy as np\nfrom os import path")
    (folder / "unused.py").touch()
    monkeypatch.syspath_prepend(folder)
    return folder


def own(*functions: str) -> dict[str, object]:
    return {"rewards": {f"r{i}": {"function": function} for i, function in enumerate(functions)}}


def test_modules_and_what_they_import_travel(folder: Path, run_settings: Settings) -> None:
    found = own_modules(run_settings(own("travels_module:f", "json:dumps", "torch.nn:Linear")))
    names = ["travels_lazily.py", "travels_module.py", "travels_package", "travels_third.py"]
    assert sorted(path.name for path in found) == names
    assert all(path.parent == folder for path in found)
    assert own_modules(run_settings()) == []


def test_packages_adapters_and_scorers_travel(folder: Path, run_settings: Settings) -> None:
    rewards = {"x": {"scorer": "travels_lazily:f"}}
    settings = run_settings({"rewards": rewards, "policy.adapter": "travels_package.inner:Policy"})
    assert {path.name for path in own_modules(settings)} >= {"travels_lazily.py", "travels_package"}


def test_within_a_job_they_have_come_already(
    folder: Path, run_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = run_settings(own("travels_module:f"))
    assert travelling(settings)
    monkeypatch.setenv(JOB, "{}")
    assert travelling(settings) == []


def test_a_missing_module_is_named_or_left_to_a_cluster(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({**own("not_there.at_all:f"), "execution": "ray", "runs": str(tmp_path / "runs")})
    message = (
        f"rewards.r0.function is 'not_there.at_all:f', and there is no module 'not_there', neither in {os.getcwd()}"
    )
    with pytest.raises(InputError, match=message):
        check_modules(settings)
    submit.check(settings)
    assert own_modules(settings) == []


def test_functions_share_a_cpu(folder: Path, run_settings: Settings) -> None:
    changes = own(*["travels_module:f"] * 3)
    changes["rewards"]["far"] = {"url": "http://127.0.0.1:1"}  # type: ignore[index]
    changes["rewards"]["ocr"] = {}  # type: ignore[index]
    changes["pools"] = {"rewards": {"r0": {"replicas": 2}, "r1": {"cpus": 1.0}}}
    cpus = {demand.pool: demand.each["CPU"] for demand in reward_demands(run_settings(changes))}
    expected = {"r0": 0.1, "r1": 1, "r2": 0.1, "far": 0.1, "ocr": 1}
    assert cpus == {f"pools.rewards.{name}": count for name, count in expected.items()}


class Recording:
    """A job server that notes what a job would be given."""

    def submit_job(self, runtime_env: dict[str, Any], submission_id: str, **_: Any) -> str:
        self.modules = [Path(path).name for path in runtime_env["py_modules"]]
        working_dir = Path(runtime_env["working_dir"])
        self.files = {str(path.relative_to(working_dir)) for path in working_dir.rglob("*.py")}
        return submission_id


def test_they_are_in_the_working_directory_of_a_job(folder: Path, run_settings: Settings) -> None:
    """Ray's job server takes folders alone as modules."""
    client = Recording()
    submit.submit(client, run_settings(own("travels_module:f")))  # type: ignore[arg-type]
    package = {"travels_package/__init__.py", "travels_package/inner/__init__.py"}
    assert client.files == {"travels_module.py", "travels_lazily.py", "travels_third.py", *package}
    assert client.modules == ["branchgrpo"]
