"""What a run logs, and what of it a resumed run replaces."""

import io
import resource

import numpy as np
import pytest
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.leaves import played
from branchgrpo.cluster.run.log import RunLog
from branchgrpo.proto.media import Media
from branchgrpo.proto.wav import read_wav, wav
from PIL import Image
from support import Settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_tensorboard_shows_a_repeated_iteration_once(run_settings: Settings) -> None:
    settings = run_settings({"logging.tensorboard": True})
    with RunFolder.create(settings) as folder:
        for steps, value in (((1, 2, 3), 0.25), ((3, 4), 0.5)):
            log = RunLog(folder, settings, steps[0])
            for step in steps:
                log.evaluation(step, {"ocr": value})
            log.close()
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload().Scalars("evaluation/ocr")
    assert [(event.step, event.value) for event in events] == [(1, 0.25), (2, 0.25), (3, 0.5), (4, 0.5)]


def test_tensorboard_reads_parts_of_a_run_in_their_order(run_settings: Settings) -> None:
    """TensorBoard reads files by name, and drops what is later than a start: twelve starts within a second or two."""
    settings = run_settings({"logging.tensorboard": True})
    with RunFolder.create(settings) as folder:
        for step in range(1, 13):
            log = RunLog(folder, settings, step)
            log.evaluation(step, {"ocr": 0.5})
            log.close()
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload().Scalars("evaluation/ocr")
    assert [event.step for event in events] == list(range(1, 13))


def test_what_could_not_be_written_can_be_written_later(run_settings: Settings) -> None:
    """The limit on the size of files stands for a full disk."""
    settings = run_settings({"logging.tensorboard": True})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunFolder.create(settings) as folder:
        log = RunLog(folder, settings, 1)
        log.evaluation(1, {"ocr": 0.1})
        (file,) = (folder.path / "tensorboard").iterdir()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, before[1]))
            for _ in range(3):
                with pytest.raises(OSError, match="too large"):
                    log.evaluation(2, {"ocr": 0.2})
                resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # now not even a new file can be begun
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.evaluation(2, {"ocr": 0.2})
        log.close()
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload().Scalars("evaluation/ocr")
    assert [event.step for event in events] == [1, 2]


def test_tensorboard_shows_pictures_of_a_repeated_iteration_once(run_settings: Settings) -> None:
    settings = run_settings({"logging.tensorboard": True})
    drawn = {step: png(step) for step in (1, 2, 3)}
    with RunFolder.create(settings) as folder:
        for steps in ((1, 2), (2, 3)):
            log = RunLog(folder, settings, steps[0])
            for step in steps:
                log.pictures(step, {"samples": drawn[step], "trees/0": drawn[1]})
            log.close()
    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["samples", "trees/0"]
    found = events.Images("samples")
    assert [(event.step, event.encoded_image_string) for event in found] == [*drawn.items()]
    assert {(event.width, event.height) for event in found} == {(4, 2)}


def test_tensorboard_plays_clips_and_sounds(run_settings: Settings) -> None:
    clip = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(1, 3, 4, 6, 3)
    sound = np.arange(-300, 300, dtype=np.int16).reshape(1, 2, 300)
    leaf = Media(clip, sound, 10.0, 8_000)
    assert not played(Media(clip[:, 0]))
    assert played(Media(sound=sound, sample_rate=8_000)) == {"sound": wav(sound[0], 8_000)}
    with RunFolder.create(run_settings({"logging.tensorboard": True})) as folder:
        log = RunLog(folder, folder.settings, 1)
        log.pictures(1, {f"samples/{name}": data for name, data in played(leaf).items()})
        log.close()
    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"images": 0, "audio": 0}).Reload()
    (heard,) = events.Audio("samples/sound")
    assert (heard.sample_rate, heard.length_frames) == (8_000, 300)
    np.testing.assert_array_equal(read_wav(io.BytesIO(heard.encoded_audio_string)).sound, sound)
    (seen,) = events.Images("samples/clip")
    with Image.open(io.BytesIO(seen.encoded_image_string)) as shown:
        assert (shown.format, shown.n_frames, shown.info["duration"], shown.size) == ("GIF", 3, 100, (6, 4))


def png(shade: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("L", (4, 2), shade).save(file, "PNG")
        return file.getvalue()
