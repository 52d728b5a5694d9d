"""The files of an iteration's samples: what is written is read, and what isn't whole is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run.samples import TreeSamples, parse, sampled_iterations, samples_file, write
from branchgrpo.proto.media import Media
from branchgrpo.proto.safetensors_codec import decode, encode
from PIL import Image

MEDIA = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
TREES = [
    TreeSamples("<b>", {"ocr": np.array([0.25, 0.75]), "a.b": np.array([1.0, 2.0])}, Media(MEDIA)),
    TreeSamples("472", {"ocr": np.array([0.5, 1.0]), "a.b": np.array([3.0, 4.0])}, Media(MEDIA[::-1])),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 5, TREES)
    found = parse((tmp_path / samples_file(5)).read_bytes())
    assert found.prompts == ["<b>", "<b>", "472", "472"]
    np.testing.assert_equal(dict(found.rewards), {"ocr": [0.25, 0.75, 0.5, 1.0], "a.b": [1, 2, 3, 4]})
    pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in found.pictures]
    np.testing.assert_array_equal(pictures, MEDIA[[0, 1, 1, 0]])
    grid = np.asarray(Image.open(tmp_path / samples_file(5, "png")))
    np.testing.assert_array_equal(grid[:4, :6], MEDIA[0])
    assert sampled_iterations(tmp_path) == [5]


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 5, TREES)
    data = (tmp_path / samples_file(5)).read_bytes()
    arrays, header = decode(data)
    without = {name: own for name, own in arrays.items() if name != "picture.3"}
    unscored = {name: own for name, own in arrays.items() if not name.startswith("reward.")}
    for broken in (
        data[:-9],
        encode(arrays),
        encode(without, header),
        encode(unscored, header),
        encode(arrays | {"reward.ocr": np.ones(3)}, header),
    ):
        with pytest.raises(ValueError, match=r"safetensors|prompts|picture\.3|no scores|ocr"):
            parse(broken)
