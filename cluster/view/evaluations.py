"""Evaluations of a run with their pictures, of which no more than one at a time is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError, safe_open

from ...proto.prompts import parse_prompts
from ...proto.webp import webp
from ..run.evaluation import evaluation_file
from .figures import Line, alike
from .pages import Picture
from .runs import Run

MAX_SIDE = 384
"""Pixels of a shown picture's longer side; larger ones are made smaller."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation whose pictures are there."""

    iteration: int
    name: str
    """Of its file, without ending."""
    prompts: Sequence[str]
    rewards: dict[str, Sequence[float]]
    """Reward -> the scores of the pictures."""


def evaluated(run: Run) -> list[Evaluated]:
    """The evaluations that can be compared with the newest and have pictures, in order."""
    found = (_read(run, line) for line in alike(run.iterations("evaluations")))
    return [one for one in found if one is not None]


def _read(run: Run, line: Line) -> Evaluated | None:
    try:
        name = evaluation_file(line)
    except (AttributeError, TypeError, ValueError):
        return None
    if (path := run.file(name)) is None:
        run.problems[name] = "is missing"
        return None
    try:
        with safe_open(path, "numpy") as file:
            prompts = parse_prompts((file.metadata() or {})["prompts"])
            names = [key for key in file.keys() if key.startswith("reward.")]  # noqa: SIM118  # it is no mapping
            rewards = {key.removeprefix("reward."): file.get_tensor(key).tolist() for key in names}
            count = file.get_slice("media").get_shape()[0]
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        run.problems[name] = f"can't be read: {error}"
        return None
    if any(len(column) != count for column in (prompts, *rewards.values())):
        run.problems[name] = f"has {count} pictures, and other numbers of prompts or scores"
        return None
    return Evaluated(line["iteration"], path.stem, prompts, rewards)


def evaluation_picture(run: Run, names: list[str]) -> Picture:
    """A picture of an evaluation: of the file of this name, the one of this number. Raises LookupError if there is
    none."""
    name, index = names
    path = run.file(f"evaluations/{name}.safetensors")
    if path is None:
        raise LookupError(name)
    try:
        with safe_open(path, "numpy") as file:
            media = file.get_slice("media")
            if not 0 <= int(index) < media.get_shape()[0]:
                raise LookupError(index)
            return Picture(webp(np.asarray(media[int(index)]), MAX_SIDE), "image/webp")
    except SafetensorError as error:
        raise LookupError(name) from error
