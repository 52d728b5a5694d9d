"""Whole runs: what they tell, killed and resumed, exported."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from branchgrpo.cluster.cli import app
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.evaluation import evaluate
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.new_folder import has_begun
from branchgrpo.cluster.run.state import read_state
from branchgrpo.cluster.run.trained import trained_weights
from branchgrpo.cluster.train import train
from branchgrpo.learner.export import export
from branchgrpo.proto.atomic_files import PARTIAL_PREFIX
from branchgrpo.proto.errors import InputError, RunFailed
from branchgrpo.proto.recipe import dump_recipe
from branchgrpo.proto.settings import RunSettings
from branchgrpo.reward_service.scorers import Scorers
from branchgrpo.rollout_workers.noise import Stream, gaussian
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.policies.load import EMBEDDED, load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from support import GLYPHS, Settings, assert_bit_equal, run_train, start_train, trained_policy, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner


def worker_of(policy: Policy, settings: RunSettings) -> RolloutWorker:
    return RolloutWorker(policy, settings.rollout)


def assert_only_whole_files(folder: Path) -> None:
    """Unfinished ones, which a killed process may leave, bear a name of their own."""
    for path in folder.rglob("*"):
        if any(part.startswith(PARTIAL_PREFIX) for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        if path.suffix == ".jsonl":
            assert [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            safetensors.torch.load_file(path)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=False)
        elif path.suffix == ".png":
            Image.open(path).load()


@pytest.fixture(scope="module")
def three(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSettings, Path]:
    """A run of three iterations, and its folder after it was run without a break.

    In a process of its own, as all that must equal it: ZeRO 3, which other tests use, changes torch for good.
    """
    folder = tmp_path_factory.mktemp("three")
    settings = settings_in(folder, {**GLYPHS, "iterations": 3, "name": "straight", "logging.samples_every": 1})
    return settings, run_train(settings, folder)


def test_a_run_tells_what_it_did(three: tuple[RunSettings, Path]) -> None:
    run = three[1]
    lines = RunFolder(run).lines("metrics")
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert all(line["logprob_abs_diff"] < 1e-5 for line in lines)
    assert sum(line["edges"] for line in lines) > 0
    for line in lines:
        assert line["cpu_seconds"].keys() == line["busy_seconds"].keys() == line["phase_seconds"].keys()
        assert line["busy_seconds"] == pytest.approx(line["phase_seconds"], abs=0.05)
        assert line["flops"].keys() == {"rollout", "learning"}  # ocr isn't torch's
        assert (line["gpu_seconds"] == {}) == (not torch.cuda.is_available())

    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 3
    assert summary["before"].keys() == summary["after"].keys() == {"ocr", "ocr_exact"}
    assert summary["training_seconds"] >= sum(summary["phase_seconds"].values()) > 0
    assert summary["phase_seconds"].keys() == {"rollout", "scoring", "learning", "publishing"}
    for name in ("before_after.png", "reward_curve.png", "recipe.yaml", "versions.json"):
        assert (run / name).is_file()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    shown = {name: [event.step for event in events.Images(name)] for name in events.Tags()["images"]}
    assert shown == {"samples": [1, 2, 3], "before_after": [3], **{f"trees/{tree}": [1] for tree in range(4)}}
    for event in events.Images("samples"):
        assert event.encoded_image_string == (run / f"samples/iteration-{event.step:06d}.png").read_bytes()


def test_a_failed_run_has_its_results_and_its_first_error(
    run_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_rewards.py").write_text(
        "calls = 0\n"
        "def red(media, prompts):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls > 12:\n"
        "        raise ZeroDivisionError('no red left')\n"
        "    return media[..., 0].mean(axis=(1, 2)) / 255\n"
    )
    changes = {
        **GLYPHS,
        "iterations": 50,
        "evaluation.every": 1,
        "rewards": {"red": {"function": "failing_rewards:red"}},
    }
    settings = run_settings(changes)
    folder = settings.runs / settings.name
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RunFailed, match="no red left"):
        train(settings, RunDisplay())
    metrics = RunFolder.open(folder).lines("metrics")
    evaluations = RunFolder.open(folder).lines("evaluations")
    assert len(evaluations) > 1
    found = json.loads((folder / "summary.json").read_text())
    assert (found["ended"], found["iterations"]) == ("failed", metrics[-1]["iteration"])
    assert "no red left" in found["error"]
    assert found["before"] == {"red": evaluations[0]["red"]}
    assert (found["after"], found["after_iteration"]) == (
        {"red": evaluations[-1]["red"]},
        evaluations[-1]["iteration"],
    )
    for name in ("before_after.png", "reward_curve.png"):
        assert (folder / name).is_file()
    log = (folder / "log.txt").read_text()
    assert 'failing_rewards.py", line 6, in red' in log
    assert log.count("ZeroDivisionError: no red left") >= 1
    assert read_state(folder)["state"] == "failed"


def test_a_killed_run_leaves_whole_files_and_goes_on(three: tuple[RunSettings, Path], tmp_path: Path) -> None:
    settings, straight = three
    killed = settings.model_copy(update={"name": "killed"})
    folder = killed.runs / "killed"
    process = start_train(killed, tmp_path, folder / "checkpoints" / "iteration-000001")
    process.send_signal(signal.SIGSTOP)
    used = rf"in use by another driver \(host {socket.gethostname()}, process {process.pid}, since"
    for again in (killed, killed.model_copy(update={"resume": "auto"})):
        with pytest.raises(InputError, match=used):
            train(again, RunDisplay(), resume=again is killed)
    process.kill()
    process.wait()
    assert_only_whole_files(folder)
    (folder / "checkpoints" / f"{PARTIAL_PREFIX}1-iteration-000002").mkdir()
    run_train(killed, tmp_path, "--resume")
    assert not list(folder.rglob(f"{PARTIAL_PREFIX}*"))
    assert_only_whole_files(folder)
    assert_bit_equal(weights(straight), weights(folder))
    second, last = weights(folder, 2), weights(folder)
    assert any((second[name] != last[name]).any() for name in last)
    lines, reference = (RunFolder(run).lines("metrics") for run in (folder, straight))
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert [line["rewards"] for line in lines] == [line["rewards"] for line in reference]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("seconds")] == [1, 2, 3]


def test_a_run_continues_with_other_settings(three: tuple[RunSettings, Path], tmp_path: Path) -> None:
    """With another learning rate, which DeepSpeed takes from the checkpoint, and an average that begins there."""
    straight = three[1]
    folder = RunFolder(Path(shutil.copytree(straight, tmp_path / "run")))
    before = weights(folder.path, 2)
    changes = ("optimizer.learning_rate=1e-30", "optimizer.weight_decay=0", "ema_decay=0.9")
    resume = ["train", str(folder.path), "--resume", "--iteration", "2", *(f"learner.{change}" for change in changes)]
    done = CliRunner().invoke(app, resume)
    assert done.exit_code == 0, done.output
    assert "goes back from iteration 3 to 2" in done.output
    assert "from iteration 3 on, learner.optimizer.learning_rate: 0.001 -> 1e-30" in done.output
    assert_bit_equal(weights(folder.path), before)
    assert_bit_equal(weights(folder.path, 3, "ema"), before)
    aside = folder.path / "set-aside" / "after-000002"
    assert_bit_equal(weights(aside, 3), weights(straight))
    assert [line["iteration"] for line in folder.lines("metrics")] == [1, 2, 3]
    assert folder.lines("metrics")[-1]["learning_rate"] == 1e-30
    assert folder.settings.learner.ema_decay == 0.9
    again = CliRunner().invoke(app, ["train", str(folder.path), "--resume"])
    assert again.exit_code == 0, again.output
    told = " ".join(again.output.split())
    assert f"all iterations are done, 3 of them; for more: branchgrpo train {folder.path} --resume" in told


def test_a_zeroed_checkpoint_is_not_evaluated_or_exported(
    three: tuple[RunSettings, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(Path(shutil.copytree(three[1], tmp_path / "run")))
    for name in ("weights.safetensors", "engine/mp_rank_00_model_states.pt"):
        file = folder.checkpoint(3) / name
        file.write_bytes(bytes(file.stat().st_size))
    assert trained_weights(folder) == (2, folder.checkpoint(2) / "weights.safetensors")
    assert "weights.safetensors has other content than was written); taking the one before" in capsys.readouterr().err
    with pytest.raises(InputError, match="iteration-000003 is damaged"):
        trained_weights(folder, 3)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_export_draws_in_plain_diffusers_what_evaluate_drew(
    run_settings: Settings, tmp_path: Path, lora: bool
) -> None:
    changes = {
        **GLYPHS,
        "iterations": 1,
        "prompts.per_iteration": 8,
        "schedule.splits": {0: 2, 1: 2, 2: 2},
        "learner.ema_decay": 0.5,
        "learner.optimizer.learning_rate": 3e-3,
        "learner.lora": {"rank": 4, "alpha": 16} if lora else None,
    }
    settings = run_settings(changes)
    folder = RunFolder.open(train(settings, RunDisplay()))

    def drawn_by(policy: Policy) -> np.ndarray:
        return evaluate(
            worker_of(policy, settings), Scorers(settings.rewards), settings, ["123", "456"]
        ).media.pictures.astype(int)

    pipeline = FluxPipeline.from_pretrained(EMBEDDED["glyphs"], dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    starts = torch.stack([gaussian(settings.evaluation.seed, 0, i, 0, Stream.START, (32, 16)) for i in range(2)])
    untrained = drawn_by(load_policy(settings.policy))
    for ema in (False, True):
        policy = trained_policy(folder, ema=ema)
        drawn = drawn_by(policy)
        assert np.abs(drawn - untrained).max() > 10
        exported = tmp_path / f"exported-{ema}"
        saved = export(policy, exported)
        if not ema:  # what the run itself has exported is the same
            own = folder.path / "export" / saved.relative_to(exported)
            for file in own.rglob("*.safetensors") if own.is_dir() else [own]:
                again = exported / file.relative_to(folder.path / "export")
                assert_bit_equal(safetensors.torch.load_file(file), safetensors.torch.load_file(again))
        if lora:
            pipeline.unload_lora_weights()
            pipeline.load_lora_weights(saved)
        else:
            pipeline.transformer = FluxTransformer2DModel.from_pretrained(saved)
        pictures = pipeline(
            ["123", "456"],
            height=32,
            width=64,
            num_inference_steps=5,
            max_sequence_length=6,
            latents=starts,
            output_type="np",
        ).images
        assert np.abs(pictures * 255 - drawn).max() <= 1


def test_a_run_outlives_its_current_folder(
    run_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    run = train(run_settings({"rewards": {"jpeg_compressibility": {}}}), RunDisplay())
    assert (run / "summary.json").is_file()


NEW = """
import os, signal, sys
from pathlib import Path
from branchgrpo.cluster.run import folder, new_folder
from branchgrpo.proto import atomic_files
from branchgrpo.proto.recipe import load_recipe

def write_text(path, text):
    if path.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    atomic_files.write_text(path, text)

new_folder.write_text = new_folder.save_recipe.__globals__["write_text"] = write_text
with folder.RunFolder.create(load_recipe(Path(sys.argv[1]))):
    pass
"""


@pytest.mark.parametrize("last", ["versions.json", "fingerprints.json", "train.txt", "recipe.yaml"])
def test_a_folder_whose_driver_was_killed_early_is_a_new_one(last: str, run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"seed": 5})
    path = settings.runs / settings.name
    (tmp_path / "new.yaml").write_text(dump_recipe(settings))
    killed = subprocess.run([sys.executable, "-c", NEW, str(tmp_path / "new.yaml"), last])
    assert killed.returncode == -signal.SIGKILL
    assert (path / "driver.lock").is_file()
    assert not (path / last).exists()
    assert not has_begun(path)
    with RunFolder.create(settings) as folder:
        assert folder.settings.seed == 5
        assert (path / "fingerprints.json").is_file()
        folder.append("metrics", {"iteration": 1})
    assert has_begun(path)
    with pytest.raises(InputError, match="exists"), RunFolder.create(settings):
        pass
