"""The section of a run's trees: the recorded iterations, their trees, and one tree drawn."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ..run.tree_record import FOLDER, TreeRecord, parse, recorded_trees
from .pages import WEBM, Asked, Links, Picture, asked_number, render
from .runs import Run
from .samples import samples_of
from .sources import sources
from .tree_drawing import draw, number, scale


@dataclass(frozen=True)
class TreeCard:
    """What stands for a tree among those of its iteration."""

    tree: int
    prompt: str
    spread: str
    """Standard deviation of the leaves' rewards."""
    mean: str
    pictures: list[str]
    """Pictures of the worst and the best leaf."""
    link: str


def build(run: Run, asked: Asked, links: Links) -> Markup:
    """The trees that the run has recorded, of which one is drawn; in an export, all of the newest iteration."""
    found = recorded_trees(run.folder)
    iterations = sorted({iteration for iteration, _ in found})
    iteration = asked_number(asked, "iteration", iterations)
    records = [record for place in found if place[0] == iteration and (record := _record(run, *place))]
    records.sort(key=lambda record: -_spread(record))
    if not records:
        return render("trees.html", iteration=iteration, iterations=iterations, cards=[], shown=[], links=links)
    served = links.section("trees") is not None
    chosen = asked_number(asked, "tree", [record.tree for record in reversed(records)])  # by default the first here
    shown = [record for record in records if record.tree == chosen] if served else records
    cards = [_card(record, links) for record in records]
    drawings = [(record, draw(record, links, _playable(run, record))) for record in shown]
    return render(
        "trees.html",
        iteration=iteration,
        iterations=iterations,
        cards=cards,
        shown=drawings,
        links=links,
        sources={record.tree: sources(record.prompt, links) for record in shown},
        scales={record.tree: scale(record) for record in shown},
        number=number,
    )


def picture(run: Run, names: list[str]) -> Picture:
    """A picture within a tree: of an iteration, a tree, and a node. With `webm` as a fourth name, what plays of the
    node, a leaf with sound. Raises LookupError if there is none."""
    iteration, tree, node = map(int, names[:3])
    if (iteration, tree) not in recorded_trees(run.folder) or not (record := _record(run, iteration, tree)):
        raise LookupError("/".join(names))
    if names[3:] == [WEBM]:
        return Picture(_playable(run, record)[node], "video/webm")
    return Picture(record.pictures[node], "image/webp")


def _record(run: Run, iteration: int, tree: int) -> TreeRecord | None:
    path = recorded_trees(run.folder)[iteration, tree]
    return run.read(f"{FOLDER}/{path.name}", parse)


def _playable(run: Run, record: TreeRecord) -> Mapping[int, bytes]:
    """What plays of the leaves by node: the record's, or else that of the iteration's samples."""
    if record.playable or (samples := samples_of(run, record.iteration)) is None:
        return record.playable
    return dict(zip(record.leaves.tolist(), samples.playable_of(record.tree, record.rewards), strict=False))


def _spread(record: TreeRecord) -> float:
    return float(np.std(record.value[record.leaves]))


def _card(record: TreeRecord, links: Links) -> TreeCard:
    leaves, values = record.leaves, record.value[record.leaves]
    ends = [int(leaves[values.argmin()]), int(leaves[values.argmax()])]
    place = f"tree/{record.iteration}/{record.tree}"
    return TreeCard(
        tree=record.tree,
        prompt=str(record.prompt),
        spread=number(_spread(record), 3),
        mean=number(float(values.mean()), 3),
        pictures=[links.picture(f"{place}/{node}") for node in ends if node in record.pictures],
        link=links.section("trees", iteration=record.iteration, tree=record.tree) or f"#tree-{record.tree}",
    )
