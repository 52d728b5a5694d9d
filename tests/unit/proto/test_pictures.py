"""Pictures of prompts: found in rows, known by their content, kept with a recipe, sent with score requests."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.pictures import Picture, PictureError, find_pictures
from branchgrpo.proto.prompt import Prompt, dump_prompts, fields_of, identity, parse_prompts, pictures_of
from branchgrpo.proto.prompts import prompts_in, read_prompts
from branchgrpo.proto.recipe import load_recipe, save_recipe
from branchgrpo.proto.scoring import ScoreRequest
from PIL import Image
from pyarrow import parquet
from support import Settings

MEDIA = np.zeros((2, 8, 6, 3), np.uint8)


def png(colour: str, size: tuple[int, int] = (4, 6)) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", size, colour).save(file, "PNG")
        return file.getvalue()


RED, BLUE = (png(colour) for colour in ("red", "blue"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two pictures, which is the user's home as well."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "red.png").write_bytes(RED)
    (tmp_path / "blue.png").write_bytes(BLUE)
    return tmp_path


def rows_in(folder: Path, *rows: Any) -> Path:
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Prompt]:
    return read_prompts(path, "prompts.train", picture_column="image")


def test_a_row_names_files_or_has_their_bytes(folder: Path) -> None:
    absolute = str(folder / "in" / "red.png")
    rows = [{"prompt": "edit", "image": own} for own in ("in/red.png", absolute, "~/in/red.png", ["in/red.png"])]
    table = pyarrow.Table.from_pylist([{"prompt": "edit", "image": RED}])
    parquet.write_table(table, folder / "bytes.parquet")
    parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": "edit", "image": [{"bytes": RED, "path": "lost.png"}]}]),
        folder / "objects.parquet",
    )
    prompts = [*read(rows_in(folder, *rows)), *read(folder / "bytes.parquet"), *read(folder / "objects.parquet")]
    assert len(prompts) == 6
    assert len(set(prompts)) == 1
    for prompt in prompts:
        (picture,) = pictures_of(prompt)
        assert picture.content() == RED
        assert not fields_of(prompt)


def test_several_pictures_stay_in_order(folder: Path) -> None:
    (prompt,) = read(rows_in(folder, {"prompt": "edit", "image": ["blue.png", "in/red.png"], "text": "1"}))
    assert [picture.pixels()[0, 0].tolist() for picture in prompt.pictures] == [[0, 0, 255], [255, 0, 0]]
    assert prompt.fields == {"text": "1"}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("gone.png", "the picture '{folder}/gone.png', which can't be read: No such file or directory"),
        ("in", "the picture '{folder}/in', which can't be read: Is a directory"),
        ("edits.jsonl", "the picture '{folder}/edits.jsonl', which can't be read: it is no picture"),
        (["blue.png", "gone.png"], "the picture '{folder}/gone.png'"),
        (None, "no picture in 'image', of prompts.picture_column"),
        ([], "no picture in 'image', of prompts.picture_column"),
        (3, "neither a path nor bytes in 'image', of prompts.picture_column"),
    ],
)
def test_a_picture_that_can_t_be_read_is_named_with_its_row(value: Any, told: str, folder: Path) -> None:
    path = rows_in(folder, {"prompt": "fine", "image": "blue.png"}, {"prompt": "edit", "image": value})
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"prompts.train is '{path}': line 2 has ")
    assert told.format(folder=folder) in str(caught.value)


def test_a_text_without_a_column_has_no_picture(folder: Path) -> None:
    (folder / "edits.txt").write_text("edit\n")
    with pytest.raises(InputError, match="line 1 has no picture in 'image'"):
        read(folder / "edits.txt")


def test_prompts_with_other_pictures_are_others(folder: Path) -> None:
    rows = [{"prompt": "edit", "image": name} for name in ("in/red.png", "blue.png")]
    red, blue = read(rows_in(folder, *rows))
    same = Prompt("edit", {"other": "fields"}, find_pictures(RED, "image", folder))
    assert len({red, blue, same, Prompt("edit")}) == 3
    assert red == same
    assert red != blue
    assert red != "edit"
    assert "edit" not in {red}
    assert identity(red) != identity(blue)
    assert pickle.loads(pickle.dumps(red)).pictures == red.pictures
    assert parse_prompts(dump_prompts([red, blue, "plain"])) == [red, blue, "plain"]
    assert json.loads(dump_prompts(["plain"])) == ["plain"], "as files without pictures have always had them"


def test_a_picture_is_upright_and_cut_to_a_size() -> None:
    lying = Image.new("RGB", (40, 20), "green")
    lying.paste("red", (0, 0, 20, 20))
    with io.BytesIO() as file:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        lying.save(file, "PNG", exif=exif)
        (picture,) = find_pictures(file.getvalue(), "image", Path())
    assert picture.pixels().shape == (40, 20, 3)
    middle = np.asarray(picture.fitted(10, 10))
    assert middle.shape == (10, 10, 3)
    assert (middle[0, 0] == (255, 0, 0)).all()
    assert (middle[-1, 0] == (0, 128, 0)).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_of_16_bits_is_scaled(suffix: str, tmp_path: Path) -> None:
    levels = np.array([[0, 16_448, 33_153, 65_535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"p.{suffix}")
    (picture,) = find_pictures(f"p.{suffix}", "image", tmp_path)
    assert picture.pixels()[0, :, 1].tolist() == [0, 64, 129, 255]


def test_grey_whose_white_is_not_known_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "p.tiff")
    with pytest.raises(PictureError, match="in 'image' the picture '.*p.tiff', which can't be read: .* mode F"):
        find_pictures("p.tiff", "image", tmp_path)


def test_a_recipe_keeps_copies(folder: Path, run_settings: Settings) -> None:
    rows = [{"prompt": f"edit {i}", "image": name} for i, name in enumerate(("in/red.png", "blue.png", "blue.png"))]
    path = rows_in(folder, *rows)
    settings = run_settings({"prompts.train": path, "prompts.held_out": path, "prompts.picture_column": "image"})
    before = prompts_in(settings.prompts, "train")
    again = load_recipe(save_recipe(settings, folder / "saved"))
    for path in (folder / "in" / "red.png", folder / "blue.png"):
        path.unlink()
    after = prompts_in(again.prompts, "train")
    assert after == before
    assert [picture.content() for prompt in after for picture in prompt.pictures] == [RED, BLUE, BLUE]
    assert len(list((folder / "saved" / "prompts" / "pictures").iterdir())) == 2


def test_a_score_request_brings_pictures_along(folder: Path) -> None:
    prompts = [Prompt("edit", {"text": "1"}, find_pictures([RED, BLUE], "image", folder)), "plain"]
    request = ScoreRequest.from_bytes(ScoreRequest(Media(MEDIA), prompts, ["shade"]).to_bytes())
    assert list(request.prompts) == prompts
    assert request.prompts[0].fields == {"text": "1"}
    first, second = (picture.pixels() for picture in request.prompts[0].pictures)
    assert first.shape == MEDIA.shape[1:]
    assert (first == (255, 0, 0)).all()
    assert (second == (0, 0, 255)).all()


def test_a_picture_without_its_file_says_so() -> None:
    for picture in (Picture("lost.png"), Picture("lost.png", Path("/nowhere/lost.png"))):
        with pytest.raises(InputError, match=r"lost\.png"):
            picture.pixels()
