"""Pictures of a run: before and after, the reward curve, grids of samples."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ...proto.atomic_files import whole
from ...proto.webp import CLIP_MILLISECONDS
from .evaluation import MADE_WITH, Evaluation

matplotlib.use("Agg")
MINIMUM_LABELLED, LABEL_PIXELS = 128, 11
"""Least width of a picture with a label, and the height of its letters."""


def before_after(
    path: Path, before: Evaluation, after: Evaluation, reward: str, *, rows: int = 6, columns: int = 4
) -> None:
    """The first prompts of two evaluations side by side, each picture with its prompt and its score by `reward`."""
    figure = Figure(figsize=(2 * columns * 1.5 + 0.6, rows * 0.92 + 0.6), layout="constrained")
    for column, (evaluation, title) in enumerate(((before, "before"), (after, "after"))):
        half = figure.add_subfigure(figure.add_gridspec(1, 2)[column])
        half.suptitle(f"{title}: mean {reward} {evaluation.means()[reward]:.2f}", fontsize=13)
        axes = half.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        firsts: dict[str, int] = {}  # of several samples of a prompt
        for i, prompt in enumerate(evaluation.prompts):
            firsts.setdefault(prompt, i)
        for axis, (prompt, i) in zip(axes, firsts.items(), strict=False):
            axis.imshow(still(evaluation.media[i]), interpolation="nearest")
            axis.set_title(f"{_short(prompt)}  {evaluation.rewards[reward][i]:.2f}", fontsize=7, pad=2)
    _save(figure, path)


def reward_curve(path: Path, metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Mean reward of the sampled leaves per iteration as lines, and of evaluations as dots, each reward where it was
    given. Dots that can't be compared are not connected.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    sampled = [line["rewards"] for line in metrics]
    names = dict.fromkeys(chain(*sampled, *(line.get(MADE_WITH, ()) for line in evaluations)))
    for index, name in enumerate(names):
        colour = f"C{index}"
        mean = [(line["iteration"], line["rewards"].get(name, {}).get("mean", math.nan)) for line in metrics]
        if any(name in rewards for rewards in sampled):
            axis.plot(*zip(*mean, strict=True), color=colour, label=f"{name}, sampled leaves")
        dots: dict[str | None, list[tuple[int, float]]] = defaultdict(list)
        for line in evaluations:
            if name in line:
                dots[line.get(MADE_WITH, {}).get(name)].append((line["iteration"], line[name]))
        for number, alike in enumerate(dots.values()):
            label = f"{name}, held-out prompts" if number == 0 else None
            axis.plot(*zip(*alike, strict=True), "o--", color=colour, label=label)
    axis.set(xlabel="iteration", ylabel="reward", title="Reward")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


def sample_grid(path: Path, media: Sequence[npt.NDArray[np.uint8]]) -> None:
    """One row per tree, one column per leaf; `media` uint8 [leaves, height, width, 3] for each tree, or clips."""
    rows = [np.concatenate([still(leaf) for leaf in tree], axis=1) for tree in media]
    with whole(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")


def labelled_grid(path: Path, media: Sequence[npt.NDArray[np.uint8]], labels: Sequence[str], *, columns: int) -> None:
    """Pictures row by row, each with lines of text below it; `media` uint8 [height, width, 3], or clips."""
    stills = [still(picture) for picture in media]
    columns = min(columns, len(stills))
    height, width = (max(picture.shape[axis] for picture in stills) for axis in (0, 1))
    factor = math.ceil(MINIMUM_LABELLED / width)
    height, width = factor * height, factor * width
    font = ImageFont.load_default(LABEL_PIXELS)
    line = LABEL_PIXELS + 4
    strip = line * max(label.count("\n") + 1 for label in labels) + 4
    sheet = Image.new("RGB", (columns * (width + 4), -(-len(stills) // columns) * (height + strip)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(stills, labels, strict=True)):
        x, y = i % columns * (width + 4), i // columns * (height + strip)
        own = (factor * picture.shape[1], factor * picture.shape[0])
        sheet.paste(Image.fromarray(picture).resize(own, Image.Resampling.NEAREST), (x, y))
        for number, text in enumerate(label.split("\n")):
            draw.text((x + 1, y + height + 1 + number * line), _fitting(text, font, width), "black", font)
    with whole(path) as temporary:
        sheet.save(temporary, format="PNG")


def _fitting(text: str, font: Any, width: int) -> str:
    """The longest beginning of a text that fits into `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def still(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture as it is; of a clip the frame in its middle."""
    return picture if picture.ndim == 3 else picture[len(picture) // 2]


def save_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """A picture as PNG; a clip as an animated one, which loses nothing either."""
    frames = [Image.fromarray(frame) for frame in (picture[None] if picture.ndim == 3 else picture)]
    frames[0].save(path, save_all=len(frames) > 1, append_images=frames[1:], duration=CLIP_MILLISECONDS, loop=0)


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 24 else prompt[:23] + "…"


def _save(figure: Figure, path: Path) -> None:
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
