"""The file of an evaluation: its media and scores in safetensors, its prompts in the header.

What reads one raises InputError, naming the file, if it is gone or damaged.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ...proto.atomic_files import whole
from ...proto.errors import InputError
from ...proto.media import PICTURES, SOUND, Media
from ...proto.prompt import dump_prompts, parse_prompts
from ...proto.safetensors_codec import encode
from ...proto.tree import FloatArray
from .evaluation import Evaluation

REWARD = "reward."


def write(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation, whole or not at all."""
    rewards = {f"{REWARD}{name}": values for name, values in evaluation.rewards.items()}
    with whole(path) as temporary:
        header = {"prompts": dump_prompts(evaluation.prompts), **evaluation.media.facts()}
        temporary.write_bytes(encode({**evaluation.media.arrays(), **rewards}, header))


def read_media(file: Any, numbers: Sequence[int]) -> Media:
    """The media of these numbers in an open file; no others are read. Raises IndexError if there are none."""
    names = [name for name in (PICTURES, SOUND) if name in file.keys()]  # noqa: SIM118  # it is no mapping
    arrays = {name: np.stack([np.asarray(file.get_slice(name)[number]) for number in numbers]) for name in names}
    return Media.from_arrays(arrays, file.metadata())


def read_prompts(path: Path) -> Sequence[str]:
    """The prompt of every picture of the evaluation in a file; no picture is read."""
    with _opened(path) as file:
        return parse_prompts(file.metadata()["prompts"])


def read_scores(path: Path) -> dict[str, FloatArray]:
    """Reward -> the scores of all pictures of the evaluation in a file, float64 [n]; no picture is read."""
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(REWARD)]  # noqa: SIM118  # it is no mapping
        return {name.removeprefix(REWARD): file.get_tensor(name) for name in names}


def read(path: Path, prompts: int | None = None) -> Evaluation:
    """The evaluation in a file; with `prompts`, one picture for each of so many first prompts. Others aren't read."""
    rewards = read_scores(path)
    with _opened(path) as file:
        every = parse_prompts(file.metadata()["prompts"])
        if prompts is None:
            return Evaluation(every, read_media(file, range(len(every))), rewards)
        firsts: dict[str, int] = {}  # a prompt may have several samples
        for number, prompt in enumerate(every):
            firsts.setdefault(prompt, number)
        shown = list(firsts.values())[:prompts]
        return Evaluation(
            list(firsts)[:prompts], read_media(file, shown), {name: values[shown] for name, values in rewards.items()}
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"the evaluation {path} can't be read: {error}") from error
