"""The files of an iteration's samples: what is written is read, and what isn't whole is refused."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run.samples import TreeSamples, parse, sampled, sampled_iterations, samples_file, write
from branchgrpo.proto.media import Media
from branchgrpo.proto.safetensors_codec import decode, encode
from PIL import Image

MEDIA = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
TREES = [
    TreeSamples(0, "<b>", {"ocr": np.array([0.25, 0.75]), "a.b": np.array([1.0, 2.0])}, Media(MEDIA)),
    TreeSamples(2, "472", {"ocr": np.array([0.5, 1.0]), "a.b": np.array([3.0, 4.0])}, Media(MEDIA[::-1])),
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
    assert sampled(tmp_path) == [(5, tmp_path / samples_file(5, ending)) for ending in ("png", "safetensors")]


def test_leaves_with_sound_are_found_by_their_tree(tmp_path: Path) -> None:
    """Of pictures there is nothing to find, and nothing more in the file; of a tree with other scores nothing plays."""
    write(tmp_path, 5, TREES)
    data = (tmp_path / samples_file(5)).read_bytes()
    assert decode(data)[1].keys() == {"prompts"}
    assert not parse(data).playable_of(0, TREES[0].rewards)
    sounds = np.random.default_rng(2).integers(-9000, 9000, (2, 2, 1, 4000), dtype=np.int16)
    write(tmp_path, 10, [replace(tree, media=Media(sound=own)) for tree, own in zip(TREES, sounds, strict=True)])
    found = parse((tmp_path / samples_file(10)).read_bytes())
    assert len(set(found.playable)) == 4
    for tree, expected in zip(TREES, (found.playable[:2], found.playable[2:]), strict=True):
        assert found.playable_of(tree.tree, tree.rewards) == expected
        assert not found.playable_of(tree.tree, {**tree.rewards, "ocr": np.zeros(2)})
        assert not found.playable_of(tree.tree, {"ocr": tree.rewards["ocr"]})
    assert not found.playable_of(1, TREES[1].rewards)


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
