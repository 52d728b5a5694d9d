"""The picture of a recorded tree: colours, marks and pictures are where the layout puts them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from branchgrpo.cluster.run.tree_layout import layout
from branchgrpo.cluster.run.tree_picture import HEAD, tree_picture
from branchgrpo.cluster.run.tree_record import TreeRecord
from branchgrpo.proto.learned_tree import EdgeState
from PIL import Image

RED, GREEN, BLUE, ORANGE, GREY = (200, 0, 0), (0, 200, 0), (31, 95, 191), (192, 90, 0), (180, 188, 197)


def webp(colour: tuple[int, int, int]) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (64, 32), colour).save(file, "WebP", lossless=True)
        return file.getvalue()


@pytest.fixture
def record() -> TreeRecord:
    """A root, two children, below each a step without a split, then a leaf: two straight ways to leaves."""
    states = [EdgeState.ROOT, *[EdgeState.TRAINED] * 4, *[EdgeState.UNTRAINED] * 2]
    return TreeRecord(
        iteration=10,
        tree=3,
        prompt="a $red$ one\nand <another>",
        objective="ratio",
        parent=np.array([-1, 0, 0, 1, 2, 3, 4]),
        depth=np.array([0, 1, 1, 2, 2, 3, 3]),
        level=np.array([0, 1, 1, 2, 2, 3, 3]),
        sigma=np.linspace(1, 0, 7),
        stochastic=np.array([False] + [True] * 6),
        trained=np.array([False] + [True] * 6),
        state=np.array(states, dtype=np.uint8),
        value=np.zeros(7),
        advantage=np.array([0.0, 1.0, -1.0, 2.0, -2.0, 0.0, 0.0]),
        weight=np.zeros(7),
        logprob=np.zeros(7),
        ratio=np.ones(7),
        rewards={"ocr": np.array([0.25, 0.75]), "a long name of a reward": np.array([1.0, np.nan])},
        pictures={0: webp(RED), 5: webp(GREEN), 6: webp(RED)},
    )


def drawn(record: TreeRecord) -> Image.Image:
    return Image.open(io.BytesIO(tree_picture(record))).convert("RGB")


def at_edge(record: TreeRecord, node: int) -> set[tuple[int, int, int]]:
    """Colours around the middle of the straight edge that leads to a node."""
    places = layout(record, 2.0)
    x = (places.x[record.depth[node] - 1] + places.x[record.depth[node]]) / 2
    box = np.array([x - 6, places.y[node] + HEAD - 6, x + 6, places.y[node] + HEAD + 6]).round().astype(int)
    return {pixel for _, pixel in drawn(record).crop(tuple(box.tolist())).getcolors()}


def test_edges_have_the_colours_of_their_advantages(record: TreeRecord) -> None:
    assert [BLUE in at_edge(record, node) for node in (3, 4, 5)] == [True, False, False]
    assert [ORANGE in at_edge(record, node) for node in (3, 4, 5)] == [False, True, False]
    assert GREY in at_edge(record, 5)


def test_pruned_and_skipped_edges_are_marked(record: TreeRecord) -> None:
    states = record.state.copy()
    states[3], states[4] = EdgeState.PRUNED, EdgeState.SKIPPED
    marked = replace(record, state=states)
    assert any(max(pixel) < 60 for pixel in at_edge(marked, 3))  # the cross
    assert not any(max(pixel) < 60 for pixel in at_edge(marked, 4))
    assert ORANGE not in at_edge(marked, 4)


def test_leaves_and_splits_have_their_pictures(record: TreeRecord) -> None:
    sheet, places = drawn(record), layout(record, 2.0)
    for node, colour in ((0, RED), (5, GREEN), (6, RED)):
        x = places.x[record.depth[node]] + (places.leaf[0] / 2 if node else 0)
        assert sheet.getpixel((round(x), round(places.y[node] + HEAD))) == colour


def test_letters_of_many_alphabets_are_drawn(record: TreeRecord) -> None:
    """None looks like one that no font has."""
    assert len({tree_picture(replace(record, prompt=letter)) for letter in "éüñßяαא\uffff"}) == 8
    assert len({tree_picture(replace(record, rewards={letter: np.zeros(2)})) for letter in "éüñßяαא\uffff"}) == 8


@pytest.mark.parametrize("leaves", [1, 256])
def test_trees_of_any_size_are_drawn(record: TreeRecord, leaves: int) -> None:
    """Without pictures, of equal advantages, and of one sequence only."""
    nodes = leaves + 1
    picked = np.r_[0, np.ones(leaves, dtype=int)]
    arrays = ("depth", "level", "sigma", "stochastic", "trained", "state", "value", "weight", "logprob", "ratio")
    changes = {name: getattr(record, name)[picked] for name in arrays}
    rewards = {"ocr": np.full(leaves, 0.5)}
    wide = replace(
        record, **changes, parent=picked - 1, advantage=np.zeros(nodes), rewards=rewards, pictures={}, prompt=""
    )
    assert drawn(wide).height >= 20 * leaves
