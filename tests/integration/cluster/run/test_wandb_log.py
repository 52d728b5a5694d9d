"""A run at Weights & Biases goes on, and no step is written twice: offline by W&B's own reader, and on a server."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import wandb
from branchgrpo.cluster.run.change_log import set_aside_after
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.evaluation import MADE_WITH
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.log import RunLog
from branchgrpo.cluster.run.loop import IterationReport, Progress
from branchgrpo.cluster.run.state import read_state
from branchgrpo.cluster.train import train
from branchgrpo.proto.errors import Diverged, InputError, ProcessLost
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.wav import wav
from offline_wandb import offline_runs
from PIL import Image
from run_folders import line
from support import GLYPHS, Settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_server import wandb_server

PICTURES = ("samples", "trees/0", "before_after")
SHORT = {**GLYPHS, "schedule": {"steps": 3, "splits": {0: 2}}, "evaluation.prompts": 1, "logging.wandb_project": "mine"}
"""Settings of a run over few and short trees."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B reads its environment once, and keeps a run that it could not finish."""
    wandb.teardown()
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


def log(folder: RunFolder, settings: RunSettings, steps: dict[int, float], *, complete: bool = True) -> None:
    """Log evaluations of some iterations, with a picture; whether the last is `complete` can be chosen."""
    own = RunLog(folder, settings, min(steps))
    for step, value in steps.items():
        own.evaluation(step, {"ocr": value})
        own.pictures(step, {"trees/0": png(step)})
        if complete or step != max(steps):
            own.complete(step)
    own.close()


def kill_helper() -> None:
    (helper,) = (child for child in psutil.Process().children() if child.name() == "wandb-core")
    helper.kill()
    helper.wait()


def png(shade: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("L", (4, 2), shade).save(file, "PNG")
        return file.getvalue()


def gif() -> bytes:
    with io.BytesIO() as file:
        first, *rest = (Image.new("L", (4, 2), shade) for shade in (0, 100, 200))
        first.save(file, "GIF", save_all=True, append_images=rest)
        return file.getvalue()


def test_a_run_goes_on_and_writes_no_step_twice(run_settings: Settings) -> None:
    settings = run_settings({"logging.tensorboard": False, "logging.wandb_project": "mine"})
    with RunFolder.create(settings) as folder:
        log(folder, settings, {0: 0.0, 1: 0.25, 2: 0.5}, complete=False)
        log(folder, settings, {1: 0.75, 2: 0.5, 3: 1.0})
    first, second = offline_runs(folder.path)
    assert first.id == second.id == json.loads((folder.path / "wandb.json").read_text())["id"]
    for found, values in ((first, {0: 0.0, 1: 0.25}), (second, {2: 0.5, 3: 1.0})):
        assert {step: item["evaluation/ocr"] for step, item in found.steps.items()} == values
        for step, item in found.steps.items():
            assert (found.files / item["trees/0.path"]).read_bytes() == png(step)
    assert second.config["name"] == settings.name


def test_clips_and_sounds_are_logged_as_what_they_are(run_settings: Settings) -> None:
    settings = run_settings({"logging.tensorboard": False, "logging.wandb_project": "mine"})
    sound = wav(np.zeros((2, 800), np.int16), 8000)
    files = {"clip": gif(), "sound": sound}
    with RunFolder.create(settings) as folder:
        own = RunLog(folder, settings, 1)
        own.pictures(1, files)
        own.complete(1)
        own.close()
    (found,) = offline_runs(folder.path)
    item = found.steps[1]
    assert (item["clip._type"], item["sound._type"]) == ("video-file", "audio-file")
    for name, content in files.items():
        assert (found.files / item[f"{name}.path"]).read_bytes() == content


def test_a_return_begins_a_new_run_with_the_figures_so_far(run_settings: Settings) -> None:
    settings = run_settings({"logging.tensorboard": False, "logging.wandb_project": "mine"})
    with RunFolder.create(settings) as folder:
        folder.append("evaluations", {"iteration": 0, "ocr": 0.25, MADE_WITH: {"ocr": "x"}})
        for iteration in (1, 2, 3):
            folder.append("metrics", line(iteration, diversity=iteration / 4))
        log(folder, settings, {4: 0.5})
        set_aside_after(folder, 4)  # nothing comes after it
        log(folder, settings, {5: 0.5})
        set_aside_after(folder, 2)
        log(folder, settings, {3: 0.75})
    first, same, other = offline_runs(folder.path)
    assert first.id == same.id != other.id
    assert first.group == other.group == settings.name
    assert [[*found.steps] for found in (first, same, other)] == [[0, 1, 2, 3, 4], [5], [0, 1, 2, 3]]
    assert other.steps[0]["evaluation/ocr"] == 0.25
    assert [other.steps[step]["diversity"] for step in (1, 2)] == [0.25, 0.5]
    assert other.steps[3]["evaluation/ocr"] == 0.75


def test_another_evaluation_of_a_written_step_begins_a_new_run(run_settings: Settings) -> None:
    """A finished run goes on as the same W&B run, unless other rewards need an evaluation where it ended.

    Wherever it ends, `before_after` is shown again.
    """
    settings = {**SHORT, "iterations": 1}
    run = train(run_settings(settings), RunDisplay())
    train(run_settings({**settings, "iterations": 2}), RunDisplay(), resume=True)
    more = {**settings, "iterations": 3, "rewards": {"jpeg_compressibility": {"weight": 1.0}}}
    train(run_settings(more), RunDisplay(), resume=True)
    first, same, other = offline_runs(run)
    assert first.id == same.id != other.id
    assert [[*found.steps] for found in (first, same, other)] == [[0, 1], [2], [0, 1, 2, 3]]
    pictured = [
        [step for step, item in found.steps.items() if "before_after.path" in item] for found in (first, same, other)
    ]
    assert pictured == [[1], [2], [3]]
    shown = EventAccumulator(str(run / "tensorboard")).Reload().Images("before_after")
    assert [event.step for event in shown] == [1, 2, 3]
    assert "evaluation/jpeg_compressibility" not in same.steps[2]
    assert (
        other.steps[2]["evaluation/jpeg_compressibility"]
        == RunFolder.open(run).lines("evaluations")[-2]["jpeg_compressibility"]
    )


def test_a_recovery_goes_on_with_the_same_run(run_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is lost once in iteration 3, before there is any checkpoint."""
    iterate, lost = InProcessLoop.iterate, iter([ProcessLost("a process is gone")])

    def losing(loop: InProcessLoop, number: int, progress: Progress) -> IterationReport:
        if number == 3 and (error := next(lost, None)):
            raise error
        return iterate(loop, number, progress)

    monkeypatch.setattr(InProcessLoop, "iterate", losing)
    changes = {"iterations": 4, "checkpoint.every": 10, "logging.samples_every": 2}
    run = train(run_settings({**SHORT, **changes}), RunDisplay())
    assert read_state(run)["recoveries"] == 1
    (found,) = offline_runs(run)
    assert [*found.steps] == [0, 1, 2, 3, 4]
    items = [*found.steps.values()]
    lines = RunFolder.open(run).lines("metrics")
    assert [item["rewards/ocr/mean"] for item in items[1:]] == [line["rewards"]["ocr"]["mean"] for line in lines]
    shown = {name: [item["_step"] for item in items if f"{name}.path" in item] for name in PICTURES}
    assert shown == {"samples": [2, 4], "trees/0": [1], "before_after": [4]}


def test_a_run_outlives_the_helper_process_of_wandb(
    run_settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so once; and what W&B lacks then it gets from the next process, each step once."""
    settings = run_settings({"logging.tensorboard": False, "logging.wandb_project": "mine"})
    with RunFolder.create(settings) as folder:
        log(folder, settings, {0: 0.0, 1: 0.25})
        own = RunLog(folder, settings, 2)
        for iteration in (2, 3, 4):
            folder.append("metrics", line(iteration, diversity=iteration / 4))
            own.pictures(iteration, {"trees/0": png(iteration)})
            if iteration == 2:
                kill_helper()
            own.complete(iteration)
        own.close()
        assert caplog.text.count("goes on without it") == 1
        monkeypatch.setattr(wandb, "run", None)
        log(folder, settings, {5: 0.5})
    found = offline_runs(folder.path)
    assert [step for one in found for step in one.steps] == [0, 1, 2, 3, 4, 5]
    assert [found[-1].steps[step]["diversity"] for step in (2, 3, 4)] == [0.5, 0.75, 1.0]
    assert len({one.id for one in found}) == 1


def test_an_error_is_not_hidden_by_one_of_wandb(run_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(loop: InProcessLoop, number: int, progress: Progress) -> IterationReport:
        kill_helper()
        raise Diverged("the loss is nan")

    monkeypatch.setattr(InProcessLoop, "iterate", diverging)
    with pytest.raises(Diverged, match="the loss is nan"):
        train(run_settings({"prompts.held_out_count": 0, "logging.wandb_project": "mine"}), RunDisplay())


def test_nobody_logged_in_is_told_before_the_run(run_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    settings = run_settings({"logging.wandb_project": "mine"})
    with pytest.raises(InputError, match="nobody is logged in to Weights & Biases: run `wandb login`"):
        train(settings, RunDisplay())
    assert not (settings.runs / settings.name).exists()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"MODE": "online", "API_KEY": "short"}, r"refuses the login .*40\+ characters.* run `wandb login`"),
        ({"MODE": "bogus"}, "WANDB_MODE .*'online', 'offline', .*not 'bogus'"),
        ({"BASE_URL": "nowhere"}, "WANDB_BASE_URL .*valid URL.*not 'nowhere'"),
    ],
    ids=["key", "mode", "address"],
)
def test_what_wandb_refuses_is_told_before_the_run(
    environment: dict[str, str], told: str, run_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.teardown()
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    settings = run_settings({"logging.wandb_project": "mine"})
    with pytest.raises(InputError, match=told):
        train(settings, RunDisplay())
    assert not (settings.runs / settings.name).exists()


@pytest.mark.parametrize("last_step", [1, 3])
def test_a_server_gets_what_it_lacks_and_nothing_twice(
    last_step: int, run_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has less than was sent where the machine of the driver was lost before all was uploaded."""
    wandb.teardown()
    settings = run_settings({"logging.tensorboard": False, "logging.wandb_project": "mine"})
    with RunFolder.create(settings) as folder, wandb_server(last_step) as server:
        environment = {"MODE": "online", "BASE_URL": server.address, "API_KEY": "a" * 40, "_DISABLE_STATS": "true"}
        for name, value in environment.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        for iteration in (1, 2):
            folder.append("metrics", line(iteration))
        (folder.path / "wandb.json").write_text('{"id": "run", "step": 3}')
        log(folder, settings, {3: 0.25, 4: 0.5})
    assert [row["_step"] for row in server.rows] == [*range(last_step + 1, 5)]
    assert server.rows[-1]["evaluation/ocr"] == 0.5
    assert json.loads((folder.path / "wandb.json").read_text()) == {"id": "run", "step": 4}
