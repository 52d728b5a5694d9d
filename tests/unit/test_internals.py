"""Private parts of libraries are used in the files that exist for them alone, and their versions have upper bounds."""

import ast
import tomllib
from collections.abc import Iterator
from io import FileIO
from types import FunctionType

import pytest
from packaging.requirements import Requirement
from support import ROOT

INTERNALS = {
    "cluster/on_ray/internals.py": {"ray"},
    "cluster/plan/meter.py": {"torch"},
    "cluster/run/log.py": {"tensorboard"},
    "learner/deepspeed_patches.py": {"deepspeed", "torch"},
    "reward_service/http_server.py": {"uvicorn"},
    "rollout_workers/policies/diffusers_internals.py": {"diffusers"},
    "rollout_workers/policies/wan.py": {"deepspeed"},  # the mark of a parameter of which a rank holds a share
}
"""File -> the libraries whose private parts it uses."""
INSIDES = (
    "deepspeed.checkpoint",
    "deepspeed.runtime",
    "tensorboard.compat",
    "tensorboard.summary",
    "uvicorn.protocols",
)
"""Modules that their libraries don't document, though their names aren't private."""
BOUNDED = {"peft", "starlette", "transformers"}
"""Libraries that are relied on beyond what they document: Starlette's texts tell which forms are too large."""
LIBRARIES = {"accelerate"}.union(BOUNDED, *INTERNALS.values())
FOLDERS = ("benchmarks", "cluster", "learner", "proto", "reward_service", "rollout_workers")

PUBLIC = {"_", "__config__", "__file__", "__path__", "__version__"}.union(
    *map(dir, (type, dict, int, FunctionType, BaseException, FileIO))
)
"""Names that begin like private ones, but are Python's own, what all modules have, or documented (pydantic's)."""


def is_private(name: object) -> bool:
    """Whether a name begins as private ones do, or as what DeepSpeed adds to parameters."""
    return isinstance(name, str) and name.startswith(("_", "ds_")) and name not in PUBLIC


def private_uses(source: str) -> Iterator[str]:
    """What a file with this source uses of a library's private parts, as far as its text tells.

    Private names and undocumented modules that it imports; private attributes, if it imports a library, of anything but
    `self`, `cls` and what it defines; attributes that it asks for by private names; arguments with private names.
    """
    nodes = list(ast.walk(ast.parse(source)))
    imports = [name for node in nodes for name in imported_names(node) if name.split(".")[0] in LIBRARIES]
    yield from (name for name in imports if name.startswith(INSIDES) or any(map(is_private, name.split("."))))
    ours = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if imports and is_private(name) and name not in ours:
                yield ast.unparse(node)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(name), *_]):
                if is_private(name):
                    yield ast.unparse(node)
            case ast.keyword(arg=name) if is_private(name):
                yield f"{name}="


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def test_private_parts_of_libraries_stay_in_their_files() -> None:
    users = {
        path.relative_to(ROOT).as_posix(): uses
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if (uses := sorted({*private_uses(path.read_text())}))
    }
    elsewhere = {file: uses for file, uses in users.items() if file not in INTERNALS}
    assert not elsewhere, f"use something public, or move this into one of {', '.join(INTERNALS)}: {elsewhere}"
    assert users.keys() == INTERNALS.keys()


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("from ray._private import state", "ray._private.state"),
        (
            "from diffusers.training_utils import _collate_lora_metadata",
            "diffusers.training_utils._collate_lora_metadata",
        ),
        ("import ray\nray._private", "ray._private"),
        ("from uvicorn.protocols.http import h11_impl", "uvicorn.protocols.http.h11_impl"),
        ("def run(self):\n    import deepspeed\n    self.module._config", "self.module._config"),
        ("getattr(network, '_repeated_blocks', None)", "getattr(network, '_repeated_blocks', None)"),
        ("getattr(parameter, 'ds_shape', parameter.shape)", "getattr(parameter, 'ds_shape', parameter.shape)"),
        ("import deepspeed\nparameter.ds_tensor", "parameter.ds_tensor"),
        ("from deepspeed.checkpoint.ds_to_universal import main", "deepspeed.checkpoint.ds_to_universal.main"),
        ("import deepspeed\ndeepspeed.ops.__compatible_ops__", "deepspeed.ops.__compatible_ops__"),
        ("method.options(_generator_backpressure_num_objects=3)", "_generator_backpressure_num_objects="),
    ],
)
def test_a_private_use_is_found(source: str, use: str) -> None:
    assert [*private_uses(source)] == [use]


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nself._mine\ncls._mine",
        "import torch\ndef _joined(self): ...\nparts[0]._joined()",
        "import torch\nprint(torch.__version__, torch.__file__)",
        "import torch\ntype(error).__name__, error.__cause__, function.__code__, shares.__getitem__",
        "import torch\nsuper().__init__()",
        "from .mine import _ours",
        "folder._mine",
    ],
)
def test_what_is_ours_is_left_alone(source: str) -> None:
    assert [*private_uses(source)] == []


def test_their_versions_have_upper_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(line) for line in project["dependencies"]]
    bounded = {one.name for one in needed if any(part.operator in {"<", "<=", "==", "~="} for part in one.specifier)}
    assert set().union(*INTERNALS.values()) | BOUNDED <= bounded
