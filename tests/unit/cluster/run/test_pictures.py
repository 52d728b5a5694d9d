"""The pictures of a run: what is shown of evaluations, and what logs get of large sheets."""

import io
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run import evaluation_storage
from branchgrpo.cluster.run.evaluation import Evaluation
from branchgrpo.cluster.run.pictures import MAXIMUM_LOGGED, before_after, logged, sample_grid
from PIL import Image


def test_one_picture_of_each_prompt_is_read(tmp_path: Path) -> None:
    prompts = ["a", "a", "b", "a", "c"]
    media = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    written = Evaluation(prompts, media, {"ocr": np.arange(5.0), "jpeg": -np.arange(5.0)})
    evaluation_storage.write(tmp_path / "one.safetensors", written)
    for count, shown in ((2, [0, 2]), (24, [0, 2, 4])):
        found = evaluation_storage.read(tmp_path / "one.safetensors", count)
        assert found.prompts == [prompts[number] for number in shown]
        np.testing.assert_array_equal(found.media, media[shown])
        np.testing.assert_array_equal(found.rewards["jpeg"], written.rewards["jpeg"][shown])
    whole = evaluation_storage.read(tmp_path / "one.safetensors")
    assert whole.prompts == prompts
    np.testing.assert_array_equal(whole.media, media)
    assert whole.means() == written.means()


@pytest.mark.parametrize(("side", "logged_as"), [(32, (64, 96)), (1000, (1365, MAXIMUM_LOGGED))])
def test_logs_get_the_file_unless_it_is_too_large(side: int, logged_as: tuple[int, int], tmp_path: Path) -> None:
    media = [np.full((2, side, side, 3), shade, np.uint8) for shade in (0, 100, 200)]
    sheet = sample_grid(tmp_path / "grid.png", media)
    png = logged(tmp_path / "grid.png", sheet)
    assert (png == (tmp_path / "grid.png").read_bytes()) == (side == 32)
    with Image.open(io.BytesIO(png)) as shown, Image.open(tmp_path / "grid.png") as written:
        assert shown.size == logged_as
        assert written.size == (2 * side, 3 * side)


@pytest.mark.parametrize(
    ("shape", "pixels"), [((4, 6, 3), 132 * 88), ((5, 600, 400, 3), 171 * 256)], ids=["small", "large clips"]
)
def test_before_and_after_stand_side_by_side(shape: tuple[int, ...], pixels: int, tmp_path: Path) -> None:
    colours = {"before": (200, 0, 0), "after": (0, 0, 200)}
    halves = []
    for title, colour in colours.items():
        media = np.broadcast_to(np.array(colour, np.uint8), (5, *shape))
        halves.append((title, Evaluation(list("abcde"), media, {"ocr": np.zeros(5)})))
    before_after(tmp_path / "both.png", halves, "ocr")
    with Image.open(tmp_path / "both.png") as both:
        middle = both.width // 2
        for box, left_or_right in (((0, 0, middle, both.height), 0), ((middle, 0, both.width, both.height), 1)):
            found = {colour: count for count, colour in both.crop(box).getcolors(both.width * both.height)}
            counts = [found.get(colour, 0) for colour in colours.values()]
            assert counts[left_or_right] == 5 * pixels
            assert counts[1 - left_or_right] == 0
