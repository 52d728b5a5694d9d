"""Leaves of every kind as still pictures and as files, and rewards that don't score them."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.run.leaves import SPECTROGRAM, drawn, save_leaf
from branchgrpo.cluster.run.preflight import check_media
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.wav import read_wav
from families import saved
from PIL import Image, ImageSequence
from support import Settings

CLIP = np.random.default_rng(0).integers(0, 256, (1, 5, 40, 60, 3), np.uint8)
SOUND = np.random.default_rng(1).integers(-9000, 9000, (1, 2, 4000), np.int16)
LEAVES = {
    "picture": Media(CLIP[:, 0]),
    "clip": Media(CLIP, frame_rate=10.0),
    "sound": Media(sound=SOUND, sample_rate=8_000),
    "clip with sound": Media(CLIP, SOUND, 10.0, 8_000),
}


def test_grids_show_frames_in_a_row_and_spectrograms() -> None:
    row = np.concatenate([CLIP[0, 0], CLIP[0, 2], CLIP[0, 4]], axis=1)
    np.testing.assert_array_equal(drawn(LEAVES["picture"]), CLIP[0, 0])
    np.testing.assert_array_equal(drawn(LEAVES["clip"]), row)
    np.testing.assert_array_equal(drawn(LEAVES["sound"]), LEAVES["sound"].looks()[0])
    both = np.asarray(drawn(LEAVES["clip with sound"]))
    np.testing.assert_array_equal(both[:40], row)
    assert both.shape == (40 + SPECTROGRAM, 180, 3)
    assert both[40:].std() > 5
    assert drawn(LEAVES["clip"], 30).size == (90, 20)


@pytest.mark.parametrize("kind", LEAVES)
def test_a_leaf_is_a_file_that_keeps_it(kind: str, tmp_path: Path) -> None:
    leaf = LEAVES[kind]
    file = save_leaf(tmp_path / "000007", leaf)
    assert list(tmp_path.iterdir()) == [file]
    if kind == "sound":
        np.testing.assert_array_equal(read_wav(io.BytesIO(file.read_bytes())).sound, SOUND)
    elif kind == "clip with sound":
        with av.open(str(file)) as opened:
            assert [stream.type for stream in opened.streams] == ["video", "audio"]
    else:
        with Image.open(file) as opened:
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)]
        np.testing.assert_array_equal(frames, CLIP[0, : leaf.frames])


def test_rewards_that_cannot_score_the_leaves_are_refused(run_settings: Settings, tmp_path: Path) -> None:
    sounds = {"policy.pretrained": str(saved("Stable Audio", tmp_path / "pipeline"))}
    both = {"policy.pretrained": str(saved("LTX-2", tmp_path / "both"))}
    for changes, rewards, message in (
        (sounds, {"ocr": {}}, r"rewards.ocr can't score leaves that are sounds; take clap"),
        ({}, {"clap": {"pretrained": "x"}}, r"rewards.clap can't score leaves that are pictures or silent clips"),
    ):
        settings = run_settings({**changes, "rewards": rewards})
        with pytest.raises(InputError, match=message):
            check_media(settings)
    check_media(run_settings({**both, "rewards": {"clap": {"pretrained": "x"}, "ocr": {}}}))
    own = run_settings({**sounds, "rewards": {"loud": {"function": "support:loudness"}}})
    check_media(own)
    assert not check(own).missing
