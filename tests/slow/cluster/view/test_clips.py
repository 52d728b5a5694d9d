"""Runs whose leaves are clips or sounds: the pages play them."""

import time
from pathlib import Path

import numpy as np
from branchgrpo.cluster.commands.evaluate import evaluate_command
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from branchgrpo.proto.wav import read_wav
from families import saved
from playwright.sync_api import Browser, Locator
from rich.console import Console
from support import Settings, until
from view_pages import served, watched

CHANGES = {
    "iterations": 1,
    "policy.width": 16,
    "policy.frames": 5,
    "prompts.per_iteration": 2,
    "learner.updates_per_iteration": 1,
    "evaluation.prompts": 1,
    "rewards": {"shade": {"function": "support:shade"}},
    "logging.samples_every": 1,
}


def test_clips_play(browser: Browser, run_settings: Settings, tmp_path: Path) -> None:
    pipeline = saved("Wan 2.1", tmp_path / "pipeline")
    run = train(run_settings({**CHANGES, "policy.pretrained": str(pipeline)}), RunDisplay(Console(quiet=True)))
    folder = RunFolder(run)
    (clip,) = folder.evaluation(folder.lines("evaluations")[-1]).media.pictures
    assert clip.shape == (5, 16, 16, 3)
    assert np.ptp(clip.astype(int), axis=0).max() > 3, "its frames differ"
    with served(run.parent) as address, watched(browser, address) as page:
        page.goto("/pictures/run")
        assert_plays(page.locator("#held-out img").last)
        assert_plays(page.locator("#samples img").first)
        page.goto("/trees/run")
        assert_plays(page.locator(".node.leaf image").first)


def test_sounds_play_over_their_spectrograms(browser: Browser, run_settings: Settings, tmp_path: Path) -> None:
    pipeline = saved("Stable Audio", tmp_path / "pipeline")
    sounds = {"policy.frames": 1, "policy.seconds": 0.4, "rewards": {"loud": {"function": "support:loudness"}}}
    changes = {**CHANGES, **sounds, "policy.pretrained": str(pipeline)}
    run = train(run_settings(changes), RunDisplay(Console(quiet=True)))
    folder = RunFolder(run)
    (sound,) = folder.evaluation(folder.lines("evaluations")[-1]).media
    assert sound.sound.shape == (1, 2, 160)
    evaluate_command(run, [], ["newest"], False, None, tmp_path / "drawn", Console(quiet=True))
    with open(tmp_path / "drawn" / "pictures" / "000000.wav", "rb") as file:
        np.testing.assert_array_equal(read_wav(file).sound, sound.sound)
    with served(run.parent) as address, watched(browser, address) as page:
        page.goto("/pictures/run")
        for shown in (page.locator("#held-out video").last, page.locator("#samples video").first):
            shown.evaluate("video => { video.muted = true; return video.play(); }")
            until(lambda shown=shown: shown.evaluate("video => video.currentTime > 0"))
            assert abs(shown.evaluate("video => video.duration") - 0.4) < 0.1
            assert shown.screenshot(), "the spectrogram"


def assert_plays(clip: Locator) -> None:
    """What is seen of a clip changes, and the clip begins anew when it has ended: a frame comes again after others."""
    shots: list[bytes] = []

    def plays() -> bool:
        shots.append(clip.screenshot())
        time.sleep(0.05 + 0.01 * (len(shots) % 10))  # never in step with the frames
        again = shots.index(shots[-1])
        return len(set(shots)) > 2 and any(shot != shots[-1] for shot in shots[again:])

    until(plays)
