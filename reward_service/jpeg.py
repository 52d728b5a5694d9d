"""How well a picture compresses (DDPO, arXiv 2305.13301): a reward without a model."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..proto.settings import RewardSettings
from .interface import Scorer, per_frame

QUALITY = 95
KILOBYTE = 1000


def load_compressibility(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """There is nothing to load."""
    return per_frame(compressibility)


def compressibility(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """`jpeg_compressibility`, minus the kilobytes of a JPEG file, and `jpeg_incompressibility`, plus."""
    sizes = np.array([_size(picture) for picture in media], dtype=float)
    return {"jpeg_compressibility": -sizes / KILOBYTE, "jpeg_incompressibility": sizes / KILOBYTE}


def _size(picture: npt.NDArray[np.uint8]) -> int:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
        return file.tell()
