"""What a run folder begins with: the settings, and what identifies the policy and the packages."""

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from ... import __version__
from ...proto.atomic_files import PARTIAL_PREFIX, is_full, must_be_makeable, sweep, write_text
from ...proto.errors import InputError
from ...proto.pictures import FOLDER as PICTURES
from ...proto.prompt import Prompt
from ...proto.recipe import save_recipe
from ...proto.settings import RunSettings
from ...rollout_workers.policies.folder import content_fingerprint
from ...rollout_workers.policies.load import find_policy
from .driver_lock import FILE as LOCK
from .driver_lock import must_be_idle

FINGERPRINTS = "fingerprints.json"
VERSIONS = "versions.json"
BEFORE_RECIPE = {LOCK, VERSIONS, FINGERPRINTS, "prompts"}
"""Files of a new folder before recipe.yaml makes it a run's."""
PACKAGES = ("torch", "diffusers", "transformers", "deepspeed", "peft", "ray", "rapidocr", "numpy")


def has_begun(path: Path) -> bool:
    """Whether there is anything at a path but what a driver has left that was killed before it wrote recipe.yaml."""
    if not os.path.isdir(path):
        return os.path.lexists(path)
    names = {file.name for file in path.iterdir() if not file.name.startswith(PARTIAL_PREFIX)}
    return bool(names) and not (LOCK in names and names <= BEFORE_RECIPE)


def begin(path: Path, settings: RunSettings) -> None:
    """Write what makes a folder that of a run. Raises InputError if the disk is full."""
    try:
        sweep(path)
        write_text(path / VERSIONS, json.dumps(versions(), indent=2) + "\n")
        write_text(path / FINGERPRINTS, json.dumps({"policy": policy_fingerprint(settings)}) + "\n")
        save_recipe(settings, path)
    except OSError as error:
        if is_full(error):
            raise InputError(
                f"run folder {path} has no space: {error.strerror}; make room, or name another place (runs=...)"
            ) from error
        raise


def with_kept_pictures(prompts: Sequence[Prompt], path: Path) -> list[Prompt]:
    """The prompts of a run with their pictures read from the run folder's copies, which every process can reach."""
    folder = path / "prompts" / PICTURES
    return [Prompt(one, one.fields, [picture.kept_in(folder) for picture in one.pictures]) for one in prompts]


def check_place(settings: RunSettings) -> None:
    """Raises InputError if there is no folder of the run, and none can be made."""
    try:
        must_be_makeable(settings.runs / settings.name)
    except InputError as error:
        raise InputError(f"runs is '{settings.runs}': run folder {error}") from error


def must_be_free(path: Path) -> None:
    """Raises InputError if there is a run at a path, or anything else."""
    if has_begun(path):
        must_be_idle(path)
        raise InputError(f"run folder {path} exists; give --resume to continue it, or another name (name=...)")


def policy_fingerprint(settings: RunSettings) -> str | None:
    """A digest that identifies the policy in any folder; None for a user's adapter, whose files are unknown."""
    folder, _ = find_policy(settings.policy)
    return None if settings.policy.adapter else content_fingerprint(folder, settings.policy.variant)


def kept_fingerprint(path: Path) -> str | None:
    """The digest of the policy that the run in a folder began with; None if it isn't known.

    Raises InputError for a damaged file.
    """
    file = path / FINGERPRINTS
    try:
        content = json.loads(file.read_text()) if file.is_file() else {"policy": None}
        if not isinstance(content, dict) or not isinstance(content.get("policy", 0), str | None):
            raise ValueError("it holds no digest of the policy")
    except ValueError as error:
        raise InputError(
            f"{file} is damaged ({error}); remove it, and the run continues without a look at whether the policy's "
            "weights are those that it began with"
        ) from error
    policy: str | None = content["policy"]
    return policy


def versions() -> dict[str, str]:
    """Name -> version, for the project, Python, the system, and the packages that matter."""
    found = {"branchgrpo": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
