"""The shipped recipes: what each is for, and copies to start from."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ...proto.atomic_files import write_text
from ...proto.errors import InputError
from ...proto.recipe import SHIPPED, load_recipe, shipped_recipe
from ...proto.settings import RunSettings
from ..on_ray.placement import demands

BASE = re.compile(r"^base: *(\S+)\.yaml *$", re.MULTILINE)
RUN_WITH = re.compile(r"Run with ([\w ]+) weights(?:.*; ([\d.]+ hours) and (\d+) GB a GPU planned)?")
"""The sentence of a recipe's head that says how far it has been verified, and what is planned."""
MINUTES = re.compile(r"\bAbout (\w+ minutes) on two cores")
"""The sentence of a recipe's head that says how long a run without GPUs takes."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that goes by its name."""

    name: str
    about: str
    """The first sentence of its head."""
    weights: str
    """Those that it has been run with: `its own`, or `small random` ones."""
    time: str
    """Hours that are planned, or minutes that it takes on two cores."""
    gigabytes: str
    """Planned GB of each GPU; empty without GPUs."""
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
        head = _head(path)
        weights, hours, gigabytes = RUN_WITH.search(head).groups("")  # type: ignore[union-attr]
        about = re.split(r"(?<=\.) ", head)[0].rstrip(".")
        yield ShippedRecipe(path.stem, about, weights, hours or _minutes(path), gigabytes, load_recipe(path))


def _minutes(path: Path) -> str:
    """How long a recipe takes without GPUs, by its head or that of its base."""
    if found := MINUTES.search(_head(path)):
        return found[1]
    return _minutes(path.with_stem(BASE.search(path.read_text())[1]))  # type: ignore[index]


def _head(path: Path) -> str:
    """The comment that a recipe begins with, in one line."""
    lines = re.match(r"(#.*\n)*", path.read_text())[0].splitlines()  # type: ignore[index]
    return " ".join(line.removeprefix("#").strip() for line in lines)


def show(console: Console) -> None:
    """Print the shipped recipes as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("recipe", "GPUs", "GB", "time"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it trains")
    for recipe in shipped():
        gpus = f"{recipe.gpus} + judge" if recipe.judges else str(recipe.gpus or "none")
        table.add_row(recipe.name, gpus, recipe.gigabytes, recipe.time, recipe.about)
    console.print(table)
    console.print(
        "GB of each GPU and hours are planned: these recipes have been run with small random weights so far.\n"
        "Those with minutes, on two CPU cores, have been run with their own.\n"
        "Start from one: branchgrpo init NAME",
        highlight=False,
    )


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
