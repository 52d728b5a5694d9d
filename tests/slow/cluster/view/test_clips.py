"""Runs whose leaves are clips or sounds: the pages play them."""

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.commands.evaluate import evaluate_command
from branchgrpo.cluster.run import samples, tree_record
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.train import train
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.wav import read_wav
from families import saved
from played_sounds import SOUNDING, likeness, sounding
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
SECONDS = {"Stable Audio": 0.4, "LTX-2": 0.17}
"""Of a family's sounds: LTX-2's are a frame shorter than its clips."""


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


@pytest.mark.parametrize(("family", "seconds"), SECONDS.items())
def test_sounds_play_over_what_is_seen(
    family: str, seconds: float, browser: Browser, run_settings: Settings, tmp_path: Path
) -> None:
    """Over its spectrogram, or with its clip."""
    changes = {**CHANGES, **sounding(family, tmp_path / "pipeline")}
    run = train(run_settings(changes), RunDisplay(Console(quiet=True)))
    folder = RunFolder(run)
    (leaf,) = folder.evaluation(folder.lines("evaluations")[-1]).media
    assert (leaf.kind, leaf.sound.shape[-1] / leaf.sample_rate) == (SOUNDING[family], seconds)
    evaluate_command(run, [], ["newest"], False, None, tmp_path / "drawn", Console(quiet=True))
    (written,) = (tmp_path / "drawn" / "pictures").glob("000000.*")
    if family == "Stable Audio":
        with open(written, "rb") as file:
            np.testing.assert_array_equal(read_wav(file).sound, leaf.sound)
    else:
        assert likeness(written.read_bytes(), leaf) > 0.95
    with served(run.parent) as address, watched(browser, address) as page:
        page.goto("/pictures/run")
        for shown in (page.locator("#held-out video").last, page.locator("#samples video").first):
            shown.evaluate("video => { video.muted = true; return video.play(); }")
            until(lambda shown=shown: shown.evaluate("video => video.currentTime > 0"))
            assert abs(shown.evaluate("video => video.duration") - seconds) < 0.1
            assert shown.screenshot()


@pytest.mark.parametrize(("family", "samples_every"), [("Stable Audio", 0), ("Stable Audio", 1), ("LTX-2", 0)])
def test_leaves_of_trees_play_their_sounds(
    browser: Browser, run_settings: Settings, tmp_path: Path, family: str, samples_every: int
) -> None:
    """Each its own, whether the tree has it or the samples of its iteration."""
    settings = run_settings({**CHANGES, **sounding(family, tmp_path / "pipeline")})
    logging = settings.logging.model_copy(update={"samples_every": samples_every})
    folder = settings.runs / settings.name
    folder.mkdir(parents=True)
    save_recipe(settings, folder)
    with closing(InProcessLoop(settings, ["123", "456"])) as loop:
        leaves = [own.media for own in loop.iterate(1).samples]
    with closing(InProcessLoop(settings.model_copy(update={"logging": logging}), ["123", "456"])) as loop:
        report = loop.iterate(1)
    for record in report.trees:
        assert len(record.playable) == (0 if samples_every else 4)
        tree_record.write(folder, record)
    if samples_every:
        samples.write(folder, 1, report.samples)
    with served(folder.parent) as address, watched(browser, address) as page:
        for record, own in zip(report.trees, leaves, strict=True):
            page.goto(f"/trees/{folder.name}?tree={record.tree}")
            assert page.locator("[data-plays]").count() == len(own) == 4
            for number, leaf in enumerate(record.leaves):
                node = page.locator(f".node[data-n='{leaf}']")
                data = page.request.get(node.get_attribute("data-plays")).body()
                assert likeness(data, own).argmax() == number
                node.press("Enter")
                player = page.locator(".path video")
                until(lambda player=player: player.evaluate("video => video.currentTime > 0"))
                assert abs(player.evaluate("video => video.duration") - SECONDS[family]) < 0.05
                assert player.evaluate(
                    "(video, address) => video.src.endsWith(address)", node.get_attribute("data-plays")
                )
            node.press("Enter")
            assert player.evaluate("video => video.paused")


def assert_plays(clip: Locator) -> None:
    """What is seen of a clip changes, and the clip begins anew when it has ended: a frame comes again after others."""
    shots: list[bytes] = []

    def plays() -> bool:
        shots.append(clip.screenshot())
        time.sleep(0.05 + 0.01 * (len(shots) % 10))  # never in step with the frames
        again = shots.index(shots[-1])
        return len(set(shots)) > 2 and any(shot != shots[-1] for shot in shots[again:])

    until(plays)
