"""The words of the embedded policy `glyphs`, and their pictures.

Every word is a three-digit number. 850 are trained on, 150 are held out; the division is fixed.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 32, 64
HELD_OUT = 150


def words() -> tuple[list[str], list[str]]:
    """All words as (training, held out), each sorted, the same on every machine."""
    order = np.random.Generator(np.random.Philox(key=2509)).permutation(1000)
    every = [f"{number:03d}" for number in order]
    return sorted(every[HELD_OUT:]), sorted(every[:HELD_OUT])


def draw(word: str, rng: np.random.Generator, *, scribbled: bool) -> np.ndarray:
    """`word` in dark ink on light paper, uint8 [32, 64, 3]; scribbled over on request."""
    paper, ink = int(rng.integers(225, 256)), int(rng.integers(0, 50))
    image = Image.new("L", (WIDTH, HEIGHT), paper)
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=float(rng.uniform(26, 28)))
    left, top, right, bottom = canvas.textbbox((0, 0), word, font=font)
    slack_x, slack_y = WIDTH - (right - left), HEIGHT - (bottom - top)
    x = slack_x / 2 - left + rng.uniform(-0.1, 0.1) * max(slack_x, 0)
    y = slack_y / 2 - top + rng.uniform(-0.1, 0.1) * max(slack_y, 0)
    canvas.text((x, y), word, fill=ink, font=font)
    if scribbled:
        _scribble(canvas, rng, ink)
    return np.repeat(np.asarray(image)[..., None], 3, axis=2)


def _scribble(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, ink: int) -> None:
    """A zigzag from left to right across the whole word."""
    turns = 9
    xs = np.linspace(3, WIDTH - 4, turns)
    ys = np.where(np.arange(turns) % 2 == rng.integers(2), 5, HEIGHT - 6)
    points = np.stack([xs, ys], axis=1) + rng.uniform(-1.5, 1.5, (turns, 2))
    canvas.line([tuple(point) for point in points], fill=ink, width=3, joint="curve")


def draw_all(chosen: Sequence[str], seed: int, *, scribbled: float) -> np.ndarray:
    """One picture per word, uint8 [N, 32, 64, 3]; each is scribbled over with probability `scribbled`."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    return np.stack([draw(word, rng, scribbled=bool(rng.random() < scribbled)) for word in chosen])
