"""Pictures of a run: before and after, the reward curve, grids of samples."""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...proto.atomic_files import whole
from ...proto.media import Media
from .evaluation import MADE_WITH, Evaluation
from .fonts import font
from .leaves import FRAMES, drawn

MINIMUM_LABELLED, LABEL_PIXELS = 128, 11
"""Minimum width of a picture with a label, and the height of its letters."""
MAXIMUM_SHOWN, COMPARED_COLUMNS, GAP, TITLE_PIXELS = 256, 4, 24, 26
"""Before and after: maximum side of a picture, columns of a half, pixels between the halves, and above them."""
MAXIMUM_LOGGED = 2048
"""Maximum side of a picture for TensorBoard and W&B, which keep many."""


def before_after(path: Path, halves: Sequence[tuple[str, Evaluation]], reward: str) -> None:
    """Evaluations side by side below their titles, each picture with its prompt and its score by `reward`."""
    sheets = []
    for title, evaluation in halves:
        scored = zip(evaluation.prompts, evaluation.rewards[reward], strict=True)
        labels = [f"{prompt}\n{score:.2f}" for prompt, score in scored]
        sheets.append((title, _labelled(evaluation.media, labels, COMPARED_COLUMNS, MAXIMUM_SHOWN)))
    letters = font(TITLE_PIXELS - 10)
    widths = [max(sheet.width, math.ceil(letters.getlength(title)) + 2) for title, sheet in sheets]
    width = sum(widths) + GAP * (len(sheets) - 1)
    both = Image.new("RGB", (width, TITLE_PIXELS + max(sheet.height for _, sheet in sheets)), "white")
    x = 0
    for (title, sheet), taken in zip(sheets, widths, strict=True):
        ImageDraw.Draw(both).text((x + 1, 4), title, "black", letters)
        both.paste(sheet, (x, TITLE_PIXELS))
        x += taken + GAP
    _save_sheet(both, path)


def reward_curve(path: Path, metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Mean reward of the sampled leaves per iteration as lines, and of evaluations as dots, each reward where it was
    given. Dots that can't be compared are not connected.
    """
    from matplotlib.figure import Figure  # here, for most processes of a run draw no curve

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
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def sample_grid(path: Path, media: Sequence[Media]) -> Image.Image:
    """One row per tree, one column per leaf of its media. Returns what is in the file."""
    rows = [np.concatenate([np.asarray(drawn(leaf)) for leaf in tree], axis=1) for tree in media]
    sheet = Image.fromarray(np.concatenate(rows))
    _save_sheet(sheet, path)
    return sheet


def logged(path: Path, sheet: Image.Image) -> bytes:
    """A picture for TensorBoard and W&B, as PNG: its file as it is, or a smaller one than a file that is too large."""
    if max(sheet.size) <= MAXIMUM_LOGGED:
        return path.read_bytes()
    sheet.thumbnail((MAXIMUM_LOGGED, MAXIMUM_LOGGED))
    with BytesIO() as file:
        sheet.save(file, "PNG")
        return file.getvalue()


def labelled_grid(path: Path, leaves: Iterable[Media], labels: Sequence[str], *, columns: int) -> None:
    """Leaves row by row, each media of one, with lines of text below them."""
    _save_sheet(_labelled(leaves, labels, columns), path)


def _labelled(leaves: Iterable[Media], labels: Sequence[str], columns: int, maximum: float = math.inf) -> Image.Image:
    """Labelled leaves as one picture; frames with a side above `maximum` are made smaller, and narrow leaves larger up
    to it. Clips stand in fewer columns: each has several frames in a row."""
    stills, longest = [], 1
    for leaf in leaves:
        stills.append(drawn(leaf, maximum))
        longest = max(longest, min(leaf.frames, FRAMES))
    columns = min(max(1, columns // longest), len(stills))
    width, height = (max(picture.size[axis] for picture in stills) for axis in (0, 1))
    factor = int(min(math.ceil(MINIMUM_LABELLED / width), max(1, maximum / height)))
    height, width = factor * height, max(factor * width, MINIMUM_LABELLED)
    letters = font(LABEL_PIXELS)
    line = LABEL_PIXELS + 4
    strip = line * max(label.count("\n") + 1 for label in labels) + 4
    sheet = Image.new("RGB", (columns * (width + 4), -(-len(stills) // columns) * (height + strip)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(stills, labels, strict=True)):
        x, y = i % columns * (width + 4), i // columns * (height + strip)
        own = (factor * picture.width, factor * picture.height)
        sheet.paste(picture.resize(own, Image.Resampling.NEAREST), (x, y))
        for number, text in enumerate(label.split("\n")):
            draw.text((x + 1, y + height + 1 + number * line), _fitting(text, letters, width), "black", letters)
    return sheet


def _fitting(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """The longest beginning of a text that fits into `width`."""
    if letters.getlength(text) <= width:
        return text
    # Not one letter after another: a prompt may have thousands, and each look measures all that are left.
    end = bisect_right(range(1, len(text)), width, key=lambda end: math.ceil(letters.getlength(f"{text[:end]}…")))
    return f"{text[:end]}…"


def _save_sheet(sheet: Image.Image, path: Path) -> None:
    with whole(path) as temporary:
        sheet.save(temporary, format="PNG")
