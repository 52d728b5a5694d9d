"""Media: what a leaf is, in arrays, files and messages, and what is seen and heard of it."""

import io

import av
import numpy as np
import pytest
from branchgrpo.proto.media import Media, joined, some_frames
from branchgrpo.proto.safetensors_codec import decode, encode
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.spectrogram import FLOOR, HEIGHT, LOWEST_HERTZ
from branchgrpo.proto.wav import read_wav, wav
from branchgrpo.proto.webm import OPUS_RATE, webm

RATE = 16_000
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), np.uint8)
CLIPS = np.random.default_rng(1).integers(0, 256, (3, 12, 6, 8, 3), np.uint8)


def tones(*hertz: float, seconds: float = 1.0, channels: int = 2, loudness: float = 0.5) -> np.ndarray:
    """Sines, int16 [n, channels, samples]."""
    time = np.arange(round(seconds * RATE)) / RATE
    waves = [loudness * 32767 * np.sin(2 * np.pi * one * time) for one in hertz]
    return np.stack(waves).round().astype(np.int16)[:, None].repeat(channels, 1)


SOUNDS = tones(220, 440, 880)
KINDS = {
    "picture": Media(PICTURES),
    "clip": Media(CLIPS, frame_rate=24.0),
    "sound": Media(sound=SOUNDS, sample_rate=RATE),
    "clip with sound": Media(CLIPS, SOUNDS, 12.5, RATE),
}


def assert_same(one: Media, other: Media) -> None:
    assert (one.kind, one.facts()) == (other.kind, other.facts())
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(other.arrays()[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_media_are_whole_after_any_way(kind: str) -> None:
    media = KINDS[kind]
    assert media.kind == kind
    assert len(media) == 3
    assert media.frames == {"picture": 1, "sound": 0}.get(kind, 12)
    assert_same(joined([media[:1], media[1:]]), media)
    assert_same(joined([*media]), media)
    assert_same(Media.from_arrays(*decode(encode(media.arrays(), media.facts()))), media)
    request = ScoreRequest(media, ["a", "b", "c"], ["r"])
    assert_same(ScoreRequest.from_bytes(request.to_bytes()).media, media)


def test_pictures_are_sent_as_they_always_were() -> None:
    """A service of an earlier version reads requests about pictures, and of clips at any rate."""
    for pictures, known in ((PICTURES, {"request"}), (CLIPS, {"request", "frame_rate"})):
        arrays, header = decode(ScoreRequest(Media(pictures, frame_rate=24.0), ["a", "b", "c"], ["r"]).to_bytes())
        np.testing.assert_array_equal(arrays.pop("media"), pictures)
        assert not arrays
        assert header.keys() == known
        assert header["request"] == '{"id": "", "prompts": ["a", "b", "c"], "rewards": ["r"]}'


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "media is nothing"),
        ({"pictures": PICTURES.astype(float)}, "media is float64"),
        ({"pictures": PICTURES[0, 0]}, "media is uint8"),
        ({"pictures": PICTURES[:, :, :0]}, r"media is uint8 \[3, 6, 0, 3\]"),
        ({"pictures": CLIPS[:, :0]}, r"media is uint8 \[3, 0, 6, 8, 3\]"),
        ({"sound": SOUNDS.astype(np.float32)}, "sound is float32"),
        ({"sound": SOUNDS[:, :, :0]}, r"sound is int16 \[3, 2, 0\]"),
        ({"pictures": CLIPS[:2], "sound": SOUNDS}, "2 clips came with 3 sounds"),
        ({"sound": SOUNDS, "sample_rate": 0}, "sample_rate is 0"),
        ({"pictures": CLIPS, "frame_rate": float("nan")}, "frame_rate is nan"),
    ],
)
def test_what_is_no_media_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Media(**fields)


def test_media_that_are_not_alike_are_not_joined() -> None:
    for one, other in (("picture", "sound"), ("clip", "clip with sound"), ("picture", "clip")):
        with pytest.raises(ValueError, match="are not alike"):
            joined([KINDS[one], KINDS[other]])
    with pytest.raises(ValueError, match="are not alike"):
        joined([KINDS["sound"], Media(sound=SOUNDS, sample_rate=8_000)])


def test_a_spectrogram_shows_tones_where_they_are() -> None:
    """Each row is a frequency, rows are at equal ratios, and brightness is loudness in decibels."""
    hertz = (200.0, 1_000.0, 5_000.0)
    for loudness in (0.5, 0.05):
        looks = Media(sound=tones(*hertz, loudness=loudness), sample_rate=RATE).looks()
        assert looks.shape[1] == HEIGHT
        for look, wanted in zip(looks, hertz, strict=True):
            column = look[:, look.shape[1] // 2, 0]
            row = HEIGHT * (1 - np.log(wanted / LOWEST_HERTZ) / np.log(RATE / 2 / LOWEST_HERTZ))
            assert abs(int(column.argmax()) - row) <= 2
            power = 20 * np.log10(loudness)
            assert column.max() == pytest.approx(255 * (1 + power / FLOOR), abs=255 * 3 / FLOOR)
    assert not Media(sound=np.zeros((1, 1, 9), np.int16)).looks().any()


def test_what_plays_has_the_frames_and_the_tone() -> None:
    for kind in ("sound", "clip with sound"):
        data = webm(KINDS[kind][1:2], 8)
        assert data == webm(KINDS[kind][1:2], 8)
        with av.open(io.BytesIO(data)) as file:
            assert [stream.type for stream in file.streams] == ["video"] * (kind != "sound") + ["audio"]
            frames = list(file.decode())
        heard = np.concatenate([frame.to_ndarray()[0] for frame in frames if isinstance(frame, av.AudioFrame)])
        spectrum = np.abs(np.fft.rfft(heard[: OPUS_RATE // 2]))
        assert 2 * spectrum.argmax() == pytest.approx(440, abs=4)
        seen = [frame for frame in frames if isinstance(frame, av.VideoFrame)]
        assert len(seen) == (12 if kind != "sound" else 0)
        assert [frame.time for frame in seen] == pytest.approx([i / 12.5 for i in range(len(seen))], abs=1e-3)


@pytest.mark.parametrize(("kind", "max_bytes"), [("sound", 30_000), ("clip with sound", 80_000)])
def test_what_plays_is_bounded_however_much_is_in_it(kind: str, max_bytes: int) -> None:
    random = np.random.default_rng(2)
    sound = random.integers(-9000, 9000, (1, 2, 5 * RATE), dtype=np.int16)
    pictures = random.integers(0, 256, (1, 120, 64, 96, 3), np.uint8) if kind != "sound" else None
    noise = Media(pictures, sound, 24.0, RATE)
    assert len(webm(noise)) > 1.5 * max_bytes
    assert len(webm(noise, max_bytes=max_bytes)) < 1.3 * max_bytes


def test_a_wav_file_keeps_every_sample() -> None:
    for sound in (SOUNDS[0], tones(300, channels=1)[0]):
        assert_same(read_wav(io.BytesIO(wav(sound, RATE))), Media(sound=sound[None], sample_rate=RATE))
    with pytest.raises(ValueError, match="truncated"):
        read_wav(io.BytesIO(wav(SOUNDS[0], RATE)[:-100]))


def test_frames_are_chosen_from_the_first_to_the_last() -> None:
    np.testing.assert_array_equal(some_frames(PICTURES[0], 3), PICTURES[:1])
    np.testing.assert_array_equal(some_frames(CLIPS[0], 3), CLIPS[0, [0, 6, 11]])
    np.testing.assert_array_equal(some_frames(CLIPS[0], 99), CLIPS[0])
