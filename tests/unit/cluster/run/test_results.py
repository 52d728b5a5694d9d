"""What a run's folder shows of its results is made of all that it holds."""

import json
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run.evaluation import Evaluation
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.results import draw_before_after, summary, write_results
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from PIL import Image
from support import Settings

WAY, OTHER_WAY = {"ocr": "x"}, {"ocr": "y"}


def add(folder: RunFolder, iteration: int, shade: int, way: dict[str, str]) -> None:
    """An evaluation whose picture is of one shade."""
    media = np.full((1, 16, 16, 3), (shade, 0, 0), np.uint8)
    folder.add_evaluation(iteration, Evaluation(["a"], Media(media), {"ocr": np.zeros(1)}), way)


def reds(path: Path) -> set[int]:
    """The shades of red in a picture."""
    with Image.open(path) as picture:
        found = picture.getcolors(picture.width * picture.height)
    return {red for _, (red, green, blue) in found if red and not green and not blue}


def test_before_and_after_are_of_the_newest_evaluation(run_settings: Settings) -> None:
    """Also if the run was killed before it drew the last one, and if nothing can be compared with that."""
    settings = run_settings()
    with RunFolder.create(settings) as folder:
        picture = folder.path / "before_after.png"
        add(folder, 0, 50, WAY)
        add(folder, 1, 150, WAY)
        assert draw_before_after(folder, settings)
        assert reds(picture) == {50, 150}
        add(folder, 2, 250, WAY)
        write_results(folder, settings)
        assert reds(picture) == {50, 250}
        add(folder, 2, 100, OTHER_WAY)
        write_results(folder, settings)
        assert not picture.exists()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 40])
def test_a_run_outlives_its_first_pictures(run_settings: Settings, content: bytes | None) -> None:
    settings = run_settings()
    with RunFolder.create(settings) as folder:
        add(folder, 0, 50, WAY)
        (first,) = (folder.path / "evaluations").iterdir()
        add(folder, 1, 150, WAY)
        first.unlink()
        if content is not None:
            first.write_bytes(content)
        assert not draw_before_after(folder, settings)
        write_results(folder, settings)
        assert summary(folder)["evaluation_prompts"] == 1
        with pytest.raises(InputError, match=rf"the evaluation .*{first.name} can't be read"):
            folder.evaluation(folder.lines("evaluations")[0])


def test_a_summary_reads_no_pictures(run_settings: Settings) -> None:
    """Those of this evaluation would need a tebibyte."""
    with RunFolder.create(run_settings()) as folder:
        add(folder, 0, 50, WAY)
        (path,) = (folder.path / "evaluations").iterdir()
        media = {"dtype": "U8", "shape": [3, 2**40 // 3, 1, 1], "data_offsets": [0, 2**40 // 3 * 3]}
        header = json.dumps({"__metadata__": {"prompts": json.dumps(["a", "b", "a"])}, "media": media}).encode()
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 2**40 // 3 * 3)  # takes no room on the disk
        assert summary(folder)["evaluation_prompts"] == 2
