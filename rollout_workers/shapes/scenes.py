"""The scenes of the embedded policy `shapes`: two coloured shapes, how they lie, their prompts and their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIZE = 48
"""Height and width of a picture, pixels."""
COLOURS = {
    "red": (225, 35, 35),
    "yellow": (225, 215, 30),
    "green": (35, 180, 50),
    "cyan": (30, 205, 215),
    "blue": (40, 60, 225),
    "magenta": (220, 40, 210),
}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Relation -> where the first shape lies, seen from the middle of the picture, as (x, y)."""
VALIDATION, HELD_OUT = 120, 200
_FINE = 8  # a picture is drawn so many times larger, and reduced: its edges are soft


@dataclass(frozen=True)
class Scene:
    """A prompt: one shape, where it lies, and the other shape."""

    colour: str
    shape: str
    relation: str
    other_colour: str
    other_shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape} {self.relation} {self.other_colour} {self.other_shape}"


def scenes() -> tuple[list[Scene], list[Scene], list[Scene]]:
    """All scenes of two colours, as (training, validation, held out); the division is fixed."""
    objects = tuple(product(COLOURS, SHAPES))
    every = [
        Scene(*one, relation, *other)
        for one, relation, other in product(objects, RELATIONS, objects)
        if one[0] != other[0]
    ]
    order = np.random.Generator(np.random.Philox(key=2509)).permutation(len(every))
    mixed = [every[i] for i in order]
    return mixed[VALIDATION + HELD_OUT :], mixed[:VALIDATION], mixed[VALIDATION : VALIDATION + HELD_OUT]


def misread(scene: Scene, share: float, rng: np.random.Generator) -> Scene:
    """The scene with each of its five words replaced, with probability `share`, by another one of its kind."""
    kinds = {"colour": COLOURS, "shape": SHAPES, "relation": RELATIONS, "other_colour": COLOURS, "other_shape": SHAPES}
    wrong = {}
    for field, words in kinds.items():
        if rng.random() < share:
            wrong[field] = str(rng.choice([word for word in words if word != getattr(scene, field)]))
    return replace(scene, **wrong)


def draw(scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The scene on light paper, uint8 [48, 48, 3]. Places, sizes and tints differ a little each time."""
    paper = int(rng.integers(232, 256))
    image = Image.new("RGB", (SIZE * _FINE, SIZE * _FINE), (paper, paper, paper))
    canvas = ImageDraw.Draw(image)
    away = np.array(RELATIONS[scene.relation])
    for side, colour, shape in ((1, scene.colour, scene.shape), (-1, scene.other_colour, scene.other_shape)):
        centre = SIZE / 2 + side * away * rng.uniform(11.5, 13) + rng.uniform(-1.5, 1.5, 2)
        tint = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13), 0, 255)
        _fill(canvas, shape, centre, rng.uniform(8, 9.5), tuple(map(int, tint)))
    return np.array(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def draw_all(chosen: Sequence[Scene], seed: int, *, misread_share: float = 0.0) -> npt.NDArray[np.uint8]:
    """One picture per scene, uint8 [n, 48, 48, 3], each misread first."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    return np.stack([draw(misread(scene, misread_share, rng), rng) for scene in chosen])


def _fill(
    canvas: ImageDraw.ImageDraw, shape: str, centre: npt.NDArray[np.float64], radius: float, colour: tuple[int, ...]
) -> None:
    """Fill a shape; `radius` is half of its height in pixels."""
    r = radius
    third = r / 3
    outlines = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -r), (r, r), (-r, r)],
        "cross": [
            *((-third, -r), (third, -r), (third, -third), (r, -third), (r, third), (third, third)),
            *((third, r), (-third, r), (-third, third), (-r, third), (-r, -third), (-third, -third)),
        ],
        "circle": [(r * np.cos(angle), r * np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 64)],
    }
    canvas.polygon([tuple((centre + point) * _FINE) for point in outlines[shape]], fill=colour)
