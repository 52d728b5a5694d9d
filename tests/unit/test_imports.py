"""The folders import downwards only, and hide nobody else's package."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support import ROOT

MAY_IMPORT = {
    "proto": {"proto"},
    "rollout_workers": {"rollout_workers", "proto"},
    "reward_service": {"reward_service", "proto"},
    "learner": {"learner", "proto", "rollout_workers"},
    "cluster": {"cluster", "proto", "rollout_workers", "reward_service", "learner"},
}
CLUSTER_MAY_IMPORT = {
    "run": {"run"},
    "plan": {"plan", "run"},
    "on_ray": {"on_ray", "plan", "run"},
    "study": {"study", "plan", "run"},
    "view": {"view", "run"},
    "commands": {"commands", "on_ray", "plan", "run", "study", "view"},
    "pages": {"pages", "run", "on_ray"},
    "run_sizes": {"on_ray", "plan"},
    "train": {"on_ray", "plan", "run", "run_sizes"},
    "cli": {"train", "commands", "on_ray", "plan", "run"},
}
"""Room or file of `cluster/` -> the ones that it knows."""
FORBIDDEN = {  # pure algorithm code knows nothing of these
    "rollout_workers": {"ray", "deepspeed"},
    "reward_service": {"ray", "deepspeed"},
    "learner": {"ray"},
    "proto": {"ray", "deepspeed", "diffusers", "transformers"},
    "cluster": {"ray", "deepspeed"},
}
KNOW_RAY = ("cluster/on_ray/", "cluster/commands/")


@cache
def imported(path: Path, typing: bool = True) -> set[str]:
    """Dotted names of the modules that a file imports; ours start with `branchgrpo.`.

    Without `typing` only what it imports when it runs.
    """
    package = ("branchgrpo", *path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text())
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    left_out = [] if typing else [inner for test in tests for node in test.body for inner in ast.walk(node)]
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_never_run_up_the_table(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "branchgrpo" and len(parts) > 1 and (ROOT / parts[1]).is_dir():
                assert parts[1] in MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {name}"
            knows_ray = path.relative_to(ROOT).as_posix().startswith(KNOW_RAY)
            forbidden = FORBIDDEN[folder] - ({"ray"} if knows_ray else set())
            assert parts[0] not in forbidden, f"{path.relative_to(ROOT)} imports {name}"


def test_rooms_of_the_cluster_folder_import_downwards_only() -> None:
    cluster = ROOT / "cluster"
    rooms = [path.stem for path in cluster.iterdir() if any(path.rglob("*.py")) or path.suffix == ".py"]
    assert set(rooms) == CLUSTER_MAY_IMPORT.keys()
    for path in cluster.rglob("*.py"):
        room = path.relative_to(cluster).parts[0].removesuffix(".py")
        for name in imported(path):
            if name.startswith("branchgrpo.cluster.") and (found := name.split(".")[2]) in CLUSTER_MAY_IMPORT:
                assert found in CLUSTER_MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {name}"


def test_the_docs_say_what_a_room_may_import() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `cluster/(\w+)(?:/|\.py)` \|.*\| (.*)\|$", page, re.MULTILINE)
    told = {room: {*re.findall(r"`(\w+)`", names)} for room, names in rows if room != "observability"}
    assert told == {room: known - {room} for room, known in CLUSTER_MAY_IMPORT.items()}


def test_no_files_import_each_other_in_a_circle() -> None:
    files = [path for folder in (*MAY_IMPORT, "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    modules = {".".join(("branchgrpo", *path.relative_to(ROOT).with_suffix("").parts)): path for path in files}
    rules = "branchgrpo.proto.settings_rules"  # names the type of the settings that it is a part of
    TopologicalSorter(
        {name: imported(path, name != rules) & modules.keys() for name, path in modules.items()}
    ).prepare()


def test_the_learner_uses_only_policies_kernels_and_noise() -> None:
    for path in (ROOT / "learner").glob("*.py"):
        for name in imported(path):
            if name.startswith("branchgrpo.rollout_workers."):
                assert name.split(".")[2] in {"policies", "kernels", "noise"}, f"{path.name} imports {name}"


def test_the_pages_about_runs_know_run_folders_alone() -> None:
    for path in (ROOT / "cluster" / "view").rglob("*.py"):
        ours = [name.split(".")[1] for name in imported(path) if name.startswith("branchgrpo.")]
        assert {*ours} <= {"proto", "cluster"}, path.name


def test_no_folder_is_a_regular_package() -> None:
    assert [path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("__init__.py")] == []
