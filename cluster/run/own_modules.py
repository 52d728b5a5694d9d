"""The user's modules that a recipe names: found, and sent to the cluster with the run."""

import ast
import os
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...proto.user_code import is_installed
from ...reward_service.scorers import reward_models

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable of the processes of a submitted job, to whose working directory the modules have come already."""
CODE_SETTINGS = ("function", "scorer")
"""Settings of a reward that name code."""
OUR_PACKAGE = __name__.partition(".")[0]


def own_modules(settings: RunSettings) -> list[Path]:
    """Files and folders of the modules that rewards and policy name and that are not installed, and of those that
    these import. None of them is run; those that aren't there are left out."""
    found: dict[str, Path] = {}
    for _, name in _named(settings):
        _add(_top(name), found)
    return list(found.values())


def missing_modules(settings: RunSettings) -> list[str]:
    """A line for each setting that names a module which is neither here nor installed."""
    elsewhere = {f"rewards.{name}.{kind}" for name in rewards_elsewhere(settings) for kind in CODE_SETTINGS}
    return [
        f"{setting} is '{name}', and there is no module '{_top(name)}', neither in {os.getcwd()} nor installed"
        for setting, name in _named(settings)
        if ":" in name and setting not in elsewhere and _spec(_top(name)) is None
    ]


def rewards_elsewhere(settings: RunSettings) -> set[str]:
    """The rewards with packages of their own (`pools.rewards.<name>.runtime_env`): only there can their code be
    imported."""
    pools = settings.pools.rewards
    return {
        name
        for model, rewards in reward_models(settings.rewards).items()
        if model in pools and pools[model].runtime_env.packages
        for name in rewards
    }


def check_modules(settings: RunSettings) -> None:
    """Raises InputError for a module that isn't here."""
    if missing := missing_modules(settings):
        raise InputError(missing[0])


def travelling(settings: RunSettings) -> list[Path]:
    """The modules that must be sent to a cluster from here."""
    return [] if JOB in os.environ else own_modules(settings)


def _named(settings: RunSettings) -> Iterator[tuple[str, str]]:
    for reward, given in settings.rewards.items():
        for kind in CODE_SETTINGS:
            if name := getattr(given, kind):
                yield f"rewards.{reward}.{kind}", name
    if settings.policy.adapter:
        yield "policy.adapter", settings.policy.adapter


def _top(name: str) -> str:
    """First part of a module's name, of `module:attribute`."""
    return name.partition(":")[0].partition(".")[0]


def _add(top: str, found: dict[str, Path]) -> None:
    """Add a module, by the first part of its name, and those that it imports, if they are not installed."""
    if top in found or top == OUR_PACKAGE or (place := _place(top)) is None or is_installed(str(place)):
        return
    found[top] = place
    for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
        for name in _imported(file):
            _add(name, found)


def _place(top: str) -> Path | None:
    """The file of a module, or the folder of a package. None for what is built in, or isn't there."""
    spec = _spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None


def _spec(top: str) -> ModuleSpec | None:
    try:
        return find_spec(top)
    except (ImportError, ValueError):
        return None


def _imported(file: Path) -> set[str]:
    """First parts of the names of the modules that a file imports."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # reported when it is imported
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}
