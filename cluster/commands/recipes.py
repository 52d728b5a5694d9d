"""The shipped recipes: what each is for, and copies to start from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...proto.atomic_files import write_text
from ...proto.errors import InputError
from ...proto.recipe import SHIPPED, load_recipe, shipped_recipe
from ...proto.settings import RunSettings
from ..on_ray.placement import demands

BASE = re.compile(r"^base: *(\S+)\.yaml *$", re.MULTILINE)
VERIFIED = "Verified: "
"""Begins the line of a recipe's head that says how far it has been run."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that goes by its name."""

    name: str
    about: str
    """The first sentence of its head."""
    verified: str
    """How far it has been run."""
    settings: RunSettings

    @property
    def gpus(self) -> float:
        """GPUs of all its processes."""
        return sum(need.count * need.each.get("GPU", 0) for need in demands(self.settings))


def shipped() -> Iterator[ShippedRecipe]:
    """All shipped recipes, by name."""
    for path in sorted(SHIPPED.glob("*.yaml")):
        head, verified = _head(path.read_text())
        yield ShippedRecipe(path.stem, re.split(r"(?<=\.) ", head)[0].rstrip("."), verified, load_recipe(path))


def _head(text: str) -> tuple[str, str]:
    """The comment that a recipe begins with, and its line about verification."""
    lines = [line.removeprefix("#").strip() for line in re.match(r"(#.*\n)*", text)[0].splitlines()]  # type: ignore[index]
    verified = next((line for line in lines if line.startswith(VERIFIED)), VERIFIED)
    return " ".join(line for line in lines if line != verified), verified.removeprefix(VERIFIED).rstrip(".")


def show(console: Console) -> None:
    """Print the shipped recipes as a table."""
    table = Table("recipe", "what for", "method", "trains", "rewards", "GPUs", "verified", show_lines=True)
    for recipe in shipped():
        settings = recipe.settings
        rewards = ", ".join(name for name, reward in settings.rewards.items() if reward.weight)
        trains = "LoRA" if settings.learner.lora else "all"
        method: str = settings.schedule.method
        if settings.learner.objective not in ("ratio", method):
            method += f", {settings.learner.objective}"
        gpus = f"{recipe.gpus:g}" if recipe.gpus else "none"
        table.add_row(recipe.name, recipe.about, method, trains, rewards, gpus, recipe.verified)
    console.print(table)
    console.print("Start from one: branchgrpo init NAME", highlight=False)


def copy(name: str, file: Path) -> list[Path]:
    """Copy a shipped recipe, with its comments, to `file`, and the prompt files that it names beside it.

    The copy's base, if it has one, is the shipped recipe. Returns the files written. Raises InputError for an unknown
    name, or if the file exists, or a prompt file with other content.
    """
    source = shipped_recipe(name)
    text = BASE.sub(r"base: \1", source.read_text())
    named = re.compile(r"^ +\w+: (\S+\.txt)$", re.MULTILINE).findall(text)
    shipped_prompts = {path.name: path.read_text() for path in sorted(source.parent.glob("*.txt"))}
    prompts = {file.parent / own: content for own, content in shipped_prompts.items() if own in named}
    if file.exists():
        raise InputError(f"{file} exists; name another file: branchgrpo init {name} FILE")
    if other := [path for path, content in prompts.items() if path.exists() and path.read_text() != content]:
        raise InputError(f"{other[0]} exists, with other prompts; name a file in another folder")
    if not file.parent.is_dir():
        raise InputError(f"folder {file.parent} doesn't exist")
    new = {path: content for path, content in prompts.items() if not path.exists()} | {file: text}
    for path, content in new.items():  # the recipe last, when what it names is there
        write_text(path, content)
    return [*reversed(new)]
