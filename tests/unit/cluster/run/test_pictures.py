"""The pictures of a run: what is shown of evaluations, and what logs get of large sheets."""

import io
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run import evaluation_storage
from branchgrpo.cluster.run.evaluation import Evaluation
from branchgrpo.cluster.run.pictures import MAXIMUM_LOGGED, before_after, labelled_grid, logged, sample_grid
from branchgrpo.proto.media import Media
from PIL import Image


def test_one_picture_of_each_prompt_is_read(tmp_path: Path) -> None:
    prompts = ["a", "a", "b", "a", "c"]
    media = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    written = Evaluation(prompts, Media(media), {"ocr": np.arange(5.0), "jpeg": -np.arange(5.0)})
    evaluation_storage.write(tmp_path / "one.safetensors", written)
    for count, shown in ((2, [0, 2]), (24, [0, 2, 4])):
        found = evaluation_storage.read(tmp_path / "one.safetensors", count)
        assert found.prompts == [prompts[number] for number in shown]
        np.testing.assert_array_equal(found.media.pictures, media[shown])
        np.testing.assert_array_equal(found.rewards["jpeg"], written.rewards["jpeg"][shown])
    whole = evaluation_storage.read(tmp_path / "one.safetensors")
    assert whole.prompts == prompts
    np.testing.assert_array_equal(whole.media.pictures, media)
    assert whole.means == written.means


@pytest.mark.parametrize(("side", "logged_as"), [(32, (64, 96)), (1000, (1365, MAXIMUM_LOGGED))])
def test_logs_get_the_file_unless_it_is_too_large(side: int, logged_as: tuple[int, int], tmp_path: Path) -> None:
    media = [Media(np.full((2, side, side, 3), shade, np.uint8)) for shade in (0, 100, 200)]
    sheet = sample_grid(tmp_path / "grid.png", media)
    png = logged(tmp_path / "grid.png", sheet)
    assert (png == (tmp_path / "grid.png").read_bytes()) == (side == 32)
    with Image.open(io.BytesIO(png)) as shown, Image.open(tmp_path / "grid.png") as written:
        assert shown.size == logged_as
        assert written.size == (2 * side, 3 * side)


@pytest.mark.parametrize(
    ("shape", "pixels"), [((4, 6, 3), 132 * 88), ((5, 600, 400, 3), 3 * 171 * 256)], ids=["small", "large clips"]
)
def test_before_and_after_stand_side_by_side(shape: tuple[int, ...], pixels: int, tmp_path: Path) -> None:
    colours = {"before": (200, 0, 0), "after": (0, 0, 200)}
    halves = []
    for title, colour in colours.items():
        media = np.broadcast_to(np.array(colour, np.uint8), (5, *shape))
        halves.append((title, Evaluation(list("abcde"), Media(media), {"ocr": np.zeros(5)})))
    before_after(tmp_path / "both.png", halves, "ocr")
    with Image.open(tmp_path / "both.png") as both:
        middle = both.width // 2
        for box, left_or_right in (((0, 0, middle, both.height), 0), ((middle, 0, both.width, both.height), 1)):
            found = {colour: count for count, colour in both.crop(box).getcolors(both.width * both.height)}
            counts = [found.get(colour, 0) for colour in colours.values()]
            assert counts[left_or_right] == 5 * pixels
            assert counts[1 - left_or_right] == 0


def half(title: str, height: int, width: int) -> tuple[str, Evaluation]:
    """A half of before and after with one red picture."""
    media = np.broadcast_to(np.array((200, 0, 0), np.uint8), (1, height, width, 3))
    return title, Evaluation(["a"], Media(media), {"ocr": np.zeros(1)})


def test_titles_do_not_run_over_each_other(tmp_path: Path) -> None:
    """Each half looks as it does alone, however few pictures are below its title."""
    halves = [half("before, iteration 0: mean ocr 0.25", 64, 64), half("after, iteration 20: mean ocr 0.75", 64, 64)]
    for name, shown in (("both", halves), ("left", halves[:1]), ("right", halves[1:])):
        before_after(tmp_path / f"{name}.png", shown, "ocr")
    both, left, right = (Image.open(tmp_path / f"{name}.png") for name in ("both", "left", "right"))
    assert both.width == left.width + 24 + right.width
    assert both.crop((0, 0, *left.size)).tobytes() == left.tobytes()
    assert both.crop((both.width - right.width, 0, *both.size)).tobytes() == right.tobytes()
    assert {colour for _, colour in left.crop((left.width - 1, 0, *left.size)).getcolors()} == {(255, 255, 255)}


@pytest.mark.parametrize(
    ("size", "shown"),
    [((1000, 100), (256, 26)), ((100, 1000), (26, 256)), ((100, 40), (200, 80)), ((32, 64), (64, 128))],
)
def test_no_picture_is_shown_above_the_maximum(size: tuple[int, int], shown: tuple[int, int], tmp_path: Path) -> None:
    before_after(tmp_path / "one.png", [half("one", *size)], "ocr")
    with Image.open(tmp_path / "one.png") as picture:
        red = np.all(np.asarray(picture) == (200, 0, 0), axis=2)
    assert (red.any(axis=1).sum(), red.any(axis=0).sum()) == shown


def test_letters_of_many_alphabets_are_drawn(tmp_path: Path) -> None:
    """None looks like one that no font has."""
    titles, labels = set(), set()
    for letter in "éüñßяαא\uffff":
        before_after(tmp_path / "title.png", [(letter, half("", 32, 32)[1])], "ocr")
        labelled_grid(tmp_path / "label.png", [half("", 32, 32)[1].media], [letter], columns=1)
        titles.add(Image.open(tmp_path / "title.png").tobytes())
        labels.add(Image.open(tmp_path / "label.png").tobytes())
    assert len(titles) == len(labels) == 8
