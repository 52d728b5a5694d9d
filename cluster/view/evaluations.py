"""Evaluations of a run with their pictures, of which no more than one at a time is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from safetensors import SafetensorError, safe_open

from ...proto.media import PICTURES, SOUND
from ...proto.prompt import parse_prompts
from ...proto.webm import webm
from ...proto.webp import webp
from ..run.evaluation import evaluation_file
from ..run.evaluation_storage import read_media
from .figures import Line, alike
from .pages import WEBM, Picture
from .runs import Run

MAX_SIDE = 384
"""Pixels of a shown picture's longer side; larger ones are made smaller."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation whose pictures are there."""

    iteration: int
    name: str
    """Name of its file, without ending."""
    prompts: Sequence[str]
    rewards: dict[str, Sequence[float]]
    """Reward -> the scores of the pictures."""
    has_sound: bool


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
            arrays = [name for name in (PICTURES, SOUND) if name in file.keys()]  # noqa: SIM118  # it is no mapping
            count = file.get_slice(arrays[0]).get_shape()[0]
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        run.problems[name] = f"can't be read: {error}"
        return None
    if any(len(column) != count for column in (prompts, *rewards.values())):
        run.problems[name] = f"has {count} pictures, and other numbers of prompts or scores"
        return None
    return Evaluated(line["iteration"], path.stem, prompts, rewards, SOUND in arrays)


def evaluation_picture(run: Run, names: list[str]) -> Picture:
    """What is seen of a leaf of an evaluation: of the file of this name, the one of this number. With `webm` as a third
    name, what plays. Raises LookupError if there is none."""
    name, index, *form = names
    path = run.file(f"evaluations/{name}.safetensors")
    if path is None:
        raise LookupError(name)
    try:
        with safe_open(path, "numpy") as file:
            if not 0 <= int(index) < len(parse_prompts(file.metadata()["prompts"])):
                raise LookupError(index)
            leaf = read_media(file, [int(index)])
    except SafetensorError as error:
        raise LookupError(name) from error
    if form == [WEBM]:
        return Picture(webm(leaf, MAX_SIDE), "video/webm")
    return Picture(webp(leaf.looks()[0], MAX_SIDE, 1000 / leaf.frame_rate), "image/webp")
