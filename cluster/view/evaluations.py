"""Evaluations of a run with their pictures, of which no more than one at a time is read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError, safe_open

from ..run.evaluation import evaluation_file
from .figures import Line, alike
from .pages import Picture
from .runs import Run

MAX_SIDE = 384
"""Pixels of a shown picture's longer side; larger ones are made smaller."""
CLIP_MILLISECONDS = 62
"""Duration of a frame of a clip: Wan makes 16 frames per second."""


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
            prompts = [str(prompt) for prompt in json.loads((file.metadata() or {})["prompts"])]
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
            return encoded(np.asarray(media[int(index)]))
    except SafetensorError as error:
        raise LookupError(name) from error


def encoded(media: npt.NDArray[np.uint8]) -> Picture:
    """A picture [height, width, 3], or a clip with frames before, as WebP; small ones without loss."""
    frames = [Image.fromarray(frame) for frame in (media[None] if media.ndim == 3 else media)]
    for frame in frames:
        frame.thumbnail((MAX_SIDE, MAX_SIDE))
    data = BytesIO()
    small = max(frames[0].size) < MAX_SIDE // 2
    frames[0].save(
        data,
        "WebP",
        lossless=small,
        quality=85,
        save_all=len(frames) > 1,
        append_images=frames[1:],
        duration=CLIP_MILLISECONDS,
        loop=0,
    )
    return Picture(data.getvalue(), "image/webp")
