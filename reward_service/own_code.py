"""The user's functions and scorers: they get copies of the media, and their exceptions are reported with file and
line.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..proto.errors import InputError
from ..proto.media import Latents, Media, Pictures
from ..proto.scoring import NotScored
from ..proto.user_code import described

MISTAKES = ("builtins", "numpy", "torch")
"""Packages whose exceptions tell of mistakes in the code that is run, which another attempt would meet again."""


class OwnScorer:
    """A user's function or scorer. Raises NotScored for any exception of it, with its traceback."""

    def __init__(self, reward: str, what: str, call: Callable[[Any, list[str]], Any]) -> None:
        """`what` names it in errors. It is called with what `given` makes of media, and prompts. It returns scores by
        reward, or those of `reward` alone."""
        self._reward, self._what, self._call = reward, what, call

    def __call__(self, media: Media, prompts: Sequence[str]) -> Mapping[str, npt.NDArray[np.float64]]:
        try:
            found = self._call(given(media), copy.deepcopy(list(prompts)))
            scores = found if isinstance(found, Mapping) else {self._reward: found}
            return {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
        except Exception as error:
            raise as_failure(self._what, error) from error


def given(media: Media) -> Pictures | Latents | Media:
    """What the user's code gets: of pictures, silent clips and latents the array, of what has sound `Media`. The arrays
    are copies, so that it can't change what other rewards and the sample grids get."""
    if media.latents is not None:
        return media.latents.copy()
    pictures = None if media.pictures is None else media.pictures.copy()
    if media.sound is None and pictures is not None:
        return pictures
    return replace(media, pictures=pictures, sound=None if media.sound is None else media.sound.copy())


def as_failure(what: str, error: Exception) -> Exception:
    """How an exception of the user's own code is reported: as NotScored with its place and traceback, unless it is an
    InputError or NotScored itself."""
    if isinstance(error, (InputError, NotScored)):
        return error
    return NotScored(f"{what} raised {described(error)}", final=not may_pass(error))


def may_pass(error: Exception) -> bool:
    """Whether another attempt may do better: files, connections and memory come back, mistakes stay."""
    if isinstance(error, (OSError, EOFError, MemoryError)) or "out of memory" in str(error):
        return True
    return type(error).__module__.partition(".")[0] not in MISTAKES
