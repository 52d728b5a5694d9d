"""The folders import downwards only, and hide nobody else's package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "proto": {"proto"},
    "rollout_workers": {"rollout_workers", "proto"},
    "reward_service": {"reward_service", "proto"},
    "learner": {"learner", "proto", "rollout_workers"},
    "cluster": {"cluster", "proto", "rollout_workers", "reward_service", "learner"},
}
FORBIDDEN = {  # pure algorithm code knows nothing of these
    "rollout_workers": {"ray", "deepspeed"},
    "reward_service": {"ray", "deepspeed"},
    "learner": {"ray"},
    "proto": {"ray", "deepspeed", "diffusers", "transformers"},
}
KNOW_RAY = {"reward_service/service.py", "reward_service/client.py"}
"""The reward models' place on Ray Serve; beside them only `cluster/` knows of Ray."""


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports; ours start with `branchgrpo.`."""
    package = ("branchgrpo", *path.relative_to(ROOT).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
            if path.relative_to(ROOT).as_posix() not in KNOW_RAY:
                assert parts[0] not in FORBIDDEN.get(folder, set()), f"{path.relative_to(ROOT)} imports {name}"


def test_learner_uses_only_policies_and_kernels_of_the_rollout_workers() -> None:
    for path in (ROOT / "learner").glob("*.py"):
        for name in imported(path):
            if name.startswith("branchgrpo.rollout_workers."):
                assert name.split(".")[2] in {"policies", "kernels"}, f"{path.name} imports {name}"


def test_no_folder_is_a_regular_package() -> None:
    assert [path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("__init__.py")] == []


def test_proto_in_a_process_of_the_checkout_is_proto_plus() -> None:
    """As in every Ray worker of a driver that is started there: Ray puts the folder first in the workers' path."""
    code = "import proto; print(proto.__file__, hasattr(proto, 'Message'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    file, is_proto_plus = done.stdout.split()
    assert Path(file).parts[-3:-1] == ("site-packages", "proto")
    assert is_proto_plus == "True"
