"""The drawing of a recorded tree: SVG, whose texts are texts, and whose colours follow the page's light or dark."""

import math
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ...proto.learned_tree import EdgeState
from ...proto.tree import FloatArray
from ..run.tree_layout import edge_levels, layout, leaves_below, picture_aspect, split_nodes
from ..run.tree_record import TreeRecord
from .pages import WEBM, Links, render

CHARACTER = 6.4
"""Width of a letter."""
STATES = {
    EdgeState.ROOT: "root",
    EdgeState.UNTRAINED: "untrained",
    EdgeState.PRUNED: "pruned",
    EdgeState.SKIPPED: "skipped",
    EdgeState.TRAINED: "trained",
}
IN_WORDS = {
    EdgeState.ROOT: "a root",
    EdgeState.UNTRAINED: "not trained by the schedule",
    EdgeState.PRUNED: "pruned",
    EdgeState.SKIPPED: "skipped, its advantage is zero",
    EdgeState.TRAINED: "trained",
}


@dataclass(frozen=True)
class DrawnNode:
    """A node, and the edge that leads to it."""

    number: int
    parent: int
    depth: int
    y: float
    kind: str
    """`leaf`, `split` or `chain`."""
    classes: str
    strength: float
    """How strong the edge's colour is, in percent."""
    level: float
    """How high its value is among the tree's, in percent."""
    facts: str
    """All its figures, as text."""
    value: str
    scores: list[str]
    """Scores of a leaf, by reward."""
    picture: str | None
    plays: str | None
    """Address of what plays, of a leaf with sound."""
    size: tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """What the edges of a tree are coloured by."""

    name: str
    low: str
    high: str
    levels: FloatArray
    """Level of the edge into every node, from -1 to 1, float64 [nodes]."""


def scale(record: TreeRecord) -> Scale:
    """Advantages, as far as the largest goes; where leaves alone are learned from, their merits, from 0 to 1."""
    if record.merit is not None:
        return Scale("merit", "0", "1", edge_levels(record))
    largest = float(np.abs(record.advantage).max()) or 1.0
    return Scale("advantage", number(-largest), number(largest, signed=True), edge_levels(record))


def draw(record: TreeRecord, links: Links, playable: Container[int] = ()) -> Markup:
    """The tree as SVG, with what its hovering, focus and choices show. The leaves in `playable` play."""
    aspect = picture_aspect(record)
    places, below = layout(record, aspect), leaves_below(record)
    levels = scale(record).levels
    low, high = float(record.value.min()), float(record.value.max())
    first = len(record.parent) - len(record.leaves)
    splits = split_nodes(record)
    nodes = []
    for n in range(len(record.parent)):
        kind = "leaf" if n >= first else "split" if n in splits else "chain"
        depth, level = int(record.depth[n]), float(levels[n])
        name = f"tree/{record.iteration}/{record.tree}/{n}"
        nodes.append(
            DrawnNode(
                number=n,
                parent=int(record.parent[n]),
                depth=depth,
                y=places.y[n],
                kind=kind,
                classes=" ".join(
                    [
                        kind,
                        STATES[EdgeState(record.state[n])],
                        "noisy" if record.stochastic[n] else "still",
                        "up" if level > 0 else "down",
                    ]
                ),
                strength=round(100 * min(abs(level), 1.0), 1),
                level=round(100 * (float(record.value[n]) - low) / (high - low), 1) if high > low else 50.0,
                facts=facts(record, n),
                value=number(record.value[n]),
                scores=[number(own[n - first]) for own in record.rewards.values()] if kind == "leaf" else [],
                picture=links.picture(name) if n in record.pictures else None,
                plays=links.picture(f"{name}/{WEBM}") if n in playable else None,
                size=places.leaf
                if kind == "leaf"
                else places.preview(below[n], aspect)
                if kind == "split"
                else (0.0, 0.0),
            )
        )
    ends = np.cumsum([CHARACTER * max(8, len(name)) + 12 for name in record.rewards]) + places.leaf[0] + 4
    best = first + int(record.value[first:].argmax())
    return render(
        "tree.svg",
        record=record,
        nodes=nodes,
        places=places,
        best=best,
        columns=list(zip(record.rewards, ends.tolist(), strict=True)),
        margin=float(ends[-1]) + 12 if len(ends) else places.leaf[0] + 12,
        height=places.y[-1] + places.row,
        ticks=_ticks(record),
    )


def facts(record: TreeRecord, node: int) -> str:
    """All figures of a node and of the edge that leads to it, as text."""
    state, depth = EdgeState(record.state[node]), int(record.depth[node])
    parts = [f"node {node}", f"after step {int(record.level[node])}" if depth else "start"]
    parts += [f"noise level {number(record.sigma[node])}", f"value {number(record.value[node])}"]
    if record.merit is None and depth:
        parts.append(f"advantage {number(record.advantage[node], signed=True)}")
        parts.append(f"weight {number(record.weight[node])}")
        parts.append(f"log-probability {number(record.logprob[node])}")
        parts.append(f"ratio {number(record.ratio[node], 6)}")
    if record.merit is not None and node in record.leaves:
        parts.append(f"merit {number(record.merit[node - record.leaves[0]])}")
        parts.append(f"weight {number(record.weight[node])}")
    if node in record.leaves:
        parts += [f"{name} {number(own[node - record.leaves[0]])}" for name, own in record.rewards.items()]
    noise = "adds noise" if record.stochastic[node] else "deterministic step"
    return " · ".join([*parts, *([noise] if depth else []), IN_WORDS[state]])


def number(value: float, digits: int = 4, *, signed: bool = False) -> str:
    """A figure with so many digits; a dash for none."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}g}" if signed and value else f"{value:.{digits}g}"
    return text.replace("-", "−")


def _ticks(record: TreeRecord) -> list[tuple[int, int, str]]:
    """Depth, place on the grid of steps, and noise level, of every depth."""
    firsts = np.searchsorted(record.depth, np.arange(record.depth[-1] + 1))
    return [(depth, int(record.level[n]), f"{record.sigma[n]:.2f}") for depth, n in enumerate(firsts)]
