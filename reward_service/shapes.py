"""Whether a picture shows the two shapes that its prompt names: a verifier that looks at pixels alone.

In the manner of GenEval (arXiv 2310.11513), a prompt such as `red circle left of blue square` makes six claims: the
colour and the shape of each of two things, how they lie, and that there are no others. `shapes` is the share of the
claims that hold, `shapes_exact` is 1 if all do. `shapes_clean` is the share of the pixels that are paper or pure
colour: it falls when a policy cheats with blurs and patterns, and is meant to be watched with weight 0.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import cv2
import numpy as np
import numpy.typing as npt

from ..proto.settings import RewardSettings
from .interface import Scorer, per_frame

HUES = {"red": 0, "yellow": 30, "green": 63, "cyan": 92, "blue": 118, "magenta": 150}
"""Colour -> its hue, in OpenCV's half degrees."""
HUE_TOLERANCE = 12
MIN_CHROMA, MAX_GREY_CHROMA = 90, 30
"""Minimum difference between a pixel's strongest and weakest channel that is colour, and maximum that is grey."""
MIN_LIGHT = 200
"""Minimum value of the channels of light paper."""
MIN_PURITY = 0.8
"""Minimum share of a thing's pixels that have its hue."""
MIN_AREA, MAX_AREA = 0.01, 0.4
"""Bounds of a thing's area, as a share of the picture. What is smaller is dirt, what is larger is no thing on paper."""
MIN_OVERLAP = 0.68
"""Minimum overlap (intersection over union) of a thing with the shape that it is said to be."""
TEMPLATE = 48
CLAIMS = 6
_RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""Relation -> the direction from the first thing to the second, as (x, y)."""


def _templates() -> dict[str, npt.NDArray[np.bool_]]:
    """Every shape as it fills its bounding box, [48, 48]."""
    y, x = (np.mgrid[:TEMPLATE, :TEMPLATE] + 0.5) / TEMPLATE * 2 - 1
    return {
        "circle": x**2 + y**2 <= 1,
        "square": np.ones((TEMPLATE, TEMPLATE), dtype=bool),
        "triangle": 2 * np.abs(x) <= y + 1,
        "cross": np.minimum(np.abs(x), np.abs(y)) <= 1 / 3,
    }


SHAPES = _templates()
_PROMPT = re.compile(
    "(?P<colour>{c}) (?P<shape>{s}) (?P<relation>{r}) (?P<other_colour>{c}) (?P<other_shape>{s})".format(
        c="|".join(HUES), s="|".join(SHAPES), r="|".join(_RELATIONS)
    )
)


@dataclass(frozen=True)
class Thing:
    """A connected patch of colour: None where colour or shape are none of those that prompts name."""

    colour: str | None
    shape: str | None
    centre: tuple[float, float]
    area: int
    """Pixels."""


def things(picture: npt.NDArray[np.uint8]) -> list[Thing]:
    """The patches of colour in a picture, uint8 [height, width, 3]."""
    chroma = np.ptp(picture, axis=2)
    hue = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[..., 0].astype(int)
    count, labels, stats, centres = cv2.connectedComponentsWithStats((chroma >= MIN_CHROMA).astype(np.uint8))
    found = []
    for i in range(1, count):
        left, top, width, height, area = map(int, stats[i])
        if MIN_AREA <= area / chroma.size <= MAX_AREA:
            mask = labels[top : top + height, left : left + width] == i
            hues = hue[top : top + height, left : left + width][mask]
            centre = (float(centres[i][0]), float(centres[i][1]))
            found.append(Thing(_colour(hues), _shape(mask), centre, area))
    return found


def _colour(hues: npt.NDArray[np.int_]) -> str | None:
    for name, hue in HUES.items():
        apart = np.abs((hues - hue + 90) % 180 - 90)
        if np.mean(apart <= HUE_TOLERANCE) >= MIN_PURITY:
            return name
    return None


def _shape(mask: npt.NDArray[np.bool_]) -> str | None:
    scaled = cv2.resize(mask.astype(np.float32), (TEMPLATE, TEMPLATE), interpolation=cv2.INTER_LINEAR) >= 0.5
    overlaps = {name: np.sum(scaled & shape) / np.sum(scaled | shape) for name, shape in SHAPES.items()}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= MIN_OVERLAP else None


def claims(picture: npt.NDArray[np.uint8], prompt: str) -> int:
    """How many of the prompt's six claims hold; 0 for a prompt that makes none.

    The things are taken for the prompt's in the order in which most claims hold. That there are no others counts only
    if there are two.
    """
    wanted = _PROMPT.fullmatch(prompt.strip())
    if wanted is None:
        return 0
    colour, shape, relation, other_colour, other_shape = wanted.groups()
    found = things(picture)
    pairs = permutations([*found, None] if len(found) < 2 else found, 2)
    best = 0
    for one, other in pairs:
        held = sum(
            (thing.colour == colour) + (thing.shape == shape)
            for thing, colour, shape in ((one, colour, shape), (other, other_colour, other_shape))
            if thing is not None
        )
        held += one is not None and other is not None and _lies(relation, one.centre, other.centre)
        best = max(best, held)
    return best + (len(found) == 2)


def _lies(relation: str, one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the way from one to the other leads in the relation's direction, within 45 degrees."""
    x, y = (b - a for a, b in zip(one, other, strict=True))
    along_x, along_y = _RELATIONS[relation]
    return x * along_x + y * along_y > abs(x * along_y) + abs(y * along_x)


def clean(picture: npt.NDArray[np.uint8]) -> float:
    """The share of the pixels that are light paper or belong to a thing of one colour, in [0, 1]."""
    paper = (np.ptp(picture, axis=2) < MAX_GREY_CHROMA) & (picture.min(axis=2) >= MIN_LIGHT)
    return float(np.mean(paper) + sum(thing.area for thing in things(picture) if thing.colour) / paper.size)


def verify(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """The three rewards of pictures, uint8 [n, height, width, 3]."""
    held = np.array([claims(picture, prompt) for picture, prompt in zip(media, prompts, strict=True)])
    return {
        "shapes": held / CLAIMS,
        "shapes_exact": (held == CLAIMS).astype(float),
        "shapes_clean": np.array([clean(picture) for picture in media]),
    }


def load_shapes(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """There is nothing to load."""
    return per_frame(verify)
