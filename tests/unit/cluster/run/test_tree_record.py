"""The files of recorded trees: what is written is read, the oldest are dropped, and broken ones are named."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run.tree_record import FOLDER, TreeRecord, read, recorded_trees, write
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import Prompt, fields_of
from branchgrpo.proto.safetensors_codec import decode, encode
from small_records import small_record


@pytest.fixture
def record() -> TreeRecord:
    """A root, two children, a leaf below each."""
    return small_record(
        prompt=Prompt("<script>alert(1)</script>", {"text": "é"}),
        state=np.array([0, 4, 2, 1, 1], dtype=np.uint8),
        advantage=np.array([0.0, -0.7, 0.7, 0.0, 0.0]),
        weight=np.array([0.0, 1.0, 0.0, 0.0, 0.0]),
        ratio=np.array([np.nan, 1.001, np.nan, np.nan, np.nan]),
        rewards={"ocr": np.array([0.25, 0.75]), "a/b.c": np.array([1.0, 2.0])},
        pictures={0: b"RIFFroot", 3: b"RIFFleaf"},
        playable={4: b"webm"},
    )


def test_what_is_written_is_read(record: TreeRecord, tmp_path: Path) -> None:
    for written in (record, replace(record, objective="nft", merit=np.array([0.1, np.nan]), prompt=Prompt("472"))):
        path = write(tmp_path, written)
        assert recorded_trees(tmp_path) == {(10, 3): path}
        found = read(path)
        assert fields_of(found.prompt) == fields_of(written.prompt)
        assert [*found.rewards] == [*written.rewards]
        for field in fields(TreeRecord):
            np.testing.assert_equal(getattr(found, field.name), getattr(written, field.name))
        np.testing.assert_array_equal(found.leaves, [3, 4])


def test_a_broken_file_is_named(record: TreeRecord, tmp_path: Path) -> None:
    path = write(tmp_path, record)
    whole = path.read_bytes()
    arrays, header = decode(whole)
    broken = {
        "cut": whole[:-10],
        "empty": b"",
        "noise": np.random.default_rng(1).bytes(500),
        "another file": encode({"media": np.zeros(3)}),
        "another format": encode(arrays, {**header, "format": "branchgrpo tree 99"}),
        "no values": encode({name: own for name, own in arrays.items() if name != "value"}, header),
        "too short": encode({**arrays, "value": arrays["value"][1:]}, header),
        "another dtype": encode({**arrays, "depth": arrays["depth"].astype(float)}, header),
        "a circle": encode({**arrays, "parent": np.array([-1, 2, 1, 1, 2])}, header),
        "an unknown state": encode({**arrays, "state": np.full(5, 9, np.uint8)}, header),
        "scores of other leaves": encode({**arrays, "reward.ocr": np.zeros(3)}, header),
        "a missing reward": encode(arrays, {**header, "rewards": json.dumps(["ocr", "gone"])}),
        "no JSON": encode(arrays, {**header, "fields": "{"}),
        "a picture of no node": encode({**arrays, "picture.9": np.zeros(1, np.uint8)}, header),
        "a sound of a split": encode({**arrays, "webm.1": np.zeros(1, np.uint8)}, header),
    }
    for what, content in broken.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match="000010-0003.safetensors"):
            print(what, read(path))
    path.unlink()
    with pytest.raises(InputError, match="000010-0003.safetensors can't be read: No such file"):
        read(path)


def test_other_files_are_no_recorded_trees(record: TreeRecord, tmp_path: Path) -> None:
    assert recorded_trees(tmp_path) == {}
    write(tmp_path, record)
    for name in ("notes.txt", ".partial-1234-000010-0003.safetensors", "a-b.safetensors", "000011.safetensors"):
        (tmp_path / FOLDER / name).touch()
    assert [*recorded_trees(tmp_path)] == [(10, 3)]
