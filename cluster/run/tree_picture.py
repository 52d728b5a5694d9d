"""The picture of a recorded tree for logs: as `branchgrpo view` draws it, without what it shows on hover."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw

from ...proto.learned_tree import EdgeState
from .fonts import font
from .tree_layout import Layout, edge_levels, layout, leaves_below, picture_aspect, split_nodes
from .tree_record import TreeRecord

Point = tuple[float, float]
FALLING, EVEN, RISING = (np.array(ImageColor.getrgb(name)) for name in ("#c05a00", "#b4bcc5", "#1f5fbf"))
"""Colours of the lowest advantage, of none, and of the highest."""
TEXT, QUIET_TEXT, LINE = "#1c2024", "#5b6570", "#d9dee3"
LETTERS, SMALL_LETTERS = 12, 10
"""Their height in pixels."""
HEAD = 24
"""Height of the line with the prompt."""
CHARACTER = 6
"""Width of a small letter."""
SUPERSAMPLING = 2
"""Edges are drawn so many times larger, then reduced: their borders are smooth."""
BENDS = 17
"""Points of an edge's curve; an odd number, so that one is in its middle."""


def tree_picture(record: TreeRecord) -> bytes:
    """The tree as PNG, from noise on the left to its leaves on the right, with their pictures and scores.

    Edges are coloured by advantage, or those into leaves by merit. Strong ones are trained, thin ones
    deterministic; those that were pruned are dotted and have a cross, those that were skipped have a ring.
    """
    places = layout(record, picture_aspect(record))
    ends = np.cumsum([places.x[-1] + places.leaf[0], *(CHARACTER * max(8, len(name)) + 12 for name in record.rewards)])
    width, height = ends[-1] + 12, places.y[-1] + places.row + HEAD
    sheet = Image.new("RGB", (SUPERSAMPLING * round(width), SUPERSAMPLING * round(height)), "white")
    _draw_edges(ImageDraw.Draw(sheet), record, places)
    sheet = sheet.reduce(SUPERSAMPLING)
    _paste_pictures(sheet, record, places)
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 4), f"iteration {record.iteration}, tree {record.tree}: {record.prompt}", TEXT, font(LETTERS))
    for depth, x in enumerate(places.x):
        level = record.level[np.searchsorted(record.depth, depth)]
        draw.text((x, HEAD + 4), str(level), QUIET_TEXT, font(SMALL_LETTERS), anchor="ma")
    draw.text((4, HEAD + 4), "step", QUIET_TEXT, font(SMALL_LETTERS))
    for (name, scores), end in zip(record.rewards.items(), ends[1:].tolist(), strict=True):
        draw.text((end, HEAD + 18), name, QUIET_TEXT, font(SMALL_LETTERS), anchor="ra")
        for leaf, score in zip(record.leaves, scores, strict=True):
            draw.text((end, places.y[leaf] + HEAD), f"{score:.3g}", TEXT, font(LETTERS), anchor="rm")
    with io.BytesIO() as file:
        sheet.save(file, "PNG")
        return file.getvalue()


def _paste_pictures(sheet: Image.Image, record: TreeRecord, places: Layout) -> None:
    """Put the pictures of splits and leaves at their places."""
    below, aspect, splits = leaves_below(record), picture_aspect(record), split_nodes(record)
    for node, data in record.pictures.items():
        x, y = places.x[record.depth[node]], places.y[node] + HEAD
        if node >= record.leaves[0]:
            (width, height), left = places.leaf, x + 4
        elif node in splits:
            width, height = places.preview(below[node], aspect)
            left = x - width / 2
        else:
            continue
        with Image.open(io.BytesIO(data)) as picture:
            small = picture.convert("RGB").resize((max(1, round(width)), max(1, round(height))))
            sheet.paste(small, (round(left), round(y - height / 2)))


def _draw_edges(draw: ImageDraw.ImageDraw, record: TreeRecord, places: Layout) -> None:
    """Draw the edges and their marks, `SUPERSAMPLING` times as large as they will be."""
    levels = edge_levels(record)
    for node in np.flatnonzero(record.parent >= 0):
        depth, state = record.depth[node], EdgeState(record.state[node])
        begin = places.x[depth - 1], places.y[record.parent[node]] + HEAD
        end = places.x[depth], places.y[node] + HEAD
        points = [(float(x), float(y)) for x, y in SUPERSAMPLING * _curve(begin, end)]
        strong = state is EdgeState.TRAINED or (state is EdgeState.SKIPPED and record.stochastic[node])
        width = 3 if strong else 2 if record.stochastic[node] else 1
        plain = state in (EdgeState.SKIPPED, EdgeState.UNTRAINED)
        colour = _colour(0.0 if plain else float(levels[node]))
        if state is EdgeState.PRUNED:
            for dot in points[::2]:
                draw.circle(dot, SUPERSAMPLING, colour)
        else:
            draw.line(points, colour, SUPERSAMPLING * width, joint="curve")
        x, y = points[BENDS // 2]
        reach = 3.5 * SUPERSAMPLING
        if state is EdgeState.PRUNED:
            for slope in (-1, 1):
                draw.line([(x - reach, y - slope * reach), (x + reach, y + slope * reach)], TEXT, 2 * SUPERSAMPLING)
        elif state is EdgeState.SKIPPED:
            draw.circle((x, y), reach, "white", QUIET_TEXT, SUPERSAMPLING)


def _curve(begin: Point, end: Point) -> npt.NDArray[np.float64]:
    """Points [BENDS, 2] of the cubic curve that leaves one point, and reaches the other, horizontally."""
    share = np.linspace(0, 1, BENDS)[:, None]
    middle = (begin[0] + end[0]) / 2
    corners = np.array([begin, (middle, begin[1]), (middle, end[1]), end])
    weights = np.hstack([(1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share**2 * (1 - share), share**3])
    return np.asarray(weights @ corners)


def _colour(level: float) -> tuple[int, int, int]:
    """The colour of an edge's level from -1 to 1."""
    end = RISING if level > 0 else FALLING
    red, green, blue = np.round(EVEN + min(abs(level), 1.0) * (end - EVEN)).astype(int).tolist()
    return red, green, blue
