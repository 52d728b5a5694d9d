"""The shipped recipes: what each is for, and copies to start from."""

import math
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
RUN_WITH = "Run with "
"""Begins the line of a recipe's head that says how far it has been verified."""
MINUTES = re.compile(r"\bAbout [^.]* on two cores[^.]*")
"""The sentence of a recipe's head that says how long a run without GPUs takes."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that goes by its name."""

    name: str
    about: str
    """The first sentence of its head."""
    run_with: str
    """Weights that it has been run with, and hours or minutes that it takes."""
    settings: RunSettings

    @property
    def gpus(self) -> int:
        """GPUs of all its processes, of which some may share one."""
        return math.ceil(sum(need.count * need.each.get("GPU", 0) for need in demands(self.settings)))

    @property
    def judges(self) -> set[str]:
        """Endpoints of the judges that it asks, which have GPUs of their own."""
        return {reward.judge.url for reward in self.settings.rewards.values() if reward.judge}


def shipped() -> Iterator[ShippedRecipe]:
    """All shipped recipes, by name."""
    for path in sorted(SHIPPED.glob("*.yaml")):
        head, run_with = _head(path.read_text())
        if minutes := _minutes(path):
            run_with += f"; {minutes}"
        yield ShippedRecipe(path.stem, re.split(r"(?<=\.) ", head)[0].rstrip("."), run_with, load_recipe(path))


def _minutes(path: Path) -> str | None:
    """How long a recipe takes without GPUs, by its head or that of its base."""
    text = path.read_text()
    if found := MINUTES.search(_head(text)[0]):
        return found[0].replace("About", "about")
    base = BASE.search(text)
    return _minutes(path.with_stem(base[1])) if base else None


def _head(text: str) -> tuple[str, str]:
    """The comment that a recipe begins with, and what its line about verification says."""
    lines = [line.removeprefix("#").strip() for line in re.match(r"(#.*\n)*", text)[0].splitlines()]  # type: ignore[index]
    run_with = next((line for line in lines if line.startswith(RUN_WITH)), RUN_WITH)
    return " ".join(line for line in lines if line != run_with), run_with.removeprefix(RUN_WITH).rstrip(".")


def show(console: Console) -> None:
    """Print the shipped recipes as a table."""
    table = Table(show_lines=True)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what for")
    table.add_column("GPUs", justify="right")
    table.add_column("run with")
    for recipe in shipped():
        gpus = str(recipe.gpus) if recipe.gpus else "none"
        table.add_row(recipe.name, recipe.about, f"{gpus} + judge's" if recipe.judges else gpus, recipe.run_with)
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
