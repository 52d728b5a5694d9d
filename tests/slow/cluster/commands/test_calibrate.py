"""`branchgrpo calibrate` on this machine, and a plan with what it has measured."""

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from branchgrpo.cluster.cli import app
from branchgrpo.cluster.commands.calibrate import calibrate
from branchgrpo.cluster.plan.calibration import calibration_file, load_calibration
from branchgrpo.cluster.plan.measuring import device_name
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import fields_of
from branchgrpo.proto.recipe import load_recipe, save_recipe
from rich.console import Console
from support import Settings
from typer.testing import CliRunner

SMALL = ["rollout.max_batch_rows=4", "rollout.decode_batch=2", "learner.rows_per_micro_batch=2"]


def command(*arguments: object) -> str:
    """What a command prints. Raises as it does."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of the demo, of whose rows half had an advantage."""
    settings = load_recipe(Path("glyphs"))
    save_recipe(settings, tmp_path / "run")
    rows = settings.prompts.per_iteration * settings.schedule.build().rows // 2
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"iteration": 1, "rows": rows}) + "\n")
    return tmp_path / "run"


def test_a_core_of_this_machine_is_calibrated_and_planned_with(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    output = command("calibrate", "glyphs", *SMALL)
    file = calibration_file(device_name(torch.device("cpu")))
    assert f"wrote {file}" in output
    assert all(kind in output for kind in ("forward", "trained", "decode", "ocr"))
    kept = load_calibration(file)
    assert kept.cores == max((os.cpu_count() or 1) // torch.get_num_threads(), 1)
    assert kept.slowdown >= 1
    given, written = ("rollout.max_batch_rows=auto", "learner.window_trees=auto"), tmp_path / "written.yaml"
    planned = command("plan", "glyphs", *given, "--gpus", "2", "--gpu", "cpu", "--from", run, "--write", written)
    assert "as measured on CPU" in planned
    assert "Of the rows that pruning leaves, 50% have an advantage" in planned
    assert "colocated, 2 ranks" in planned
    assert "auto, in layout 1: rollout.max_batch_rows=" in planned
    assert not load_recipe(written).automatic
    with pytest.raises(InputError, match=r"is of CPU .*and --gpu a100 is NVIDIA A100"):
        command("plan", "glyphs", "--gpu", "a100", "--calibration", file)


ONE_BY_ONE = {"rollout.max_batch_rows": 1, "rollout.decode_batch": 1, "learner.rows_per_micro_batch": 1}


def by_word(pictures: npt.NDArray[np.uint8], prompts: list[str]) -> list[float]:
    """Reads a field of each prompt."""
    return [float(len(fields_of(prompt)["word"])) for prompt in prompts]


def greedy(pictures: npt.NDArray[np.uint8], prompts: list[str]) -> list[float]:
    """Takes more memory than there is."""
    return torch.empty(2**60).tolist()


def test_rewards_get_a_prompt_of_the_run(run_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text(json.dumps({"prompt": "a sign", "word": "seven"}) + "\n")
    own = {
        "prompts.train": str(tmp_path / "words.jsonl"),
        "rewards": {"own": {"function": f"{__name__}:by_word"}},
        "pools.rewards.own.batch_pictures": 1,
    }
    file = calibrate(run_settings({**ONE_BY_ONE, **own}), Console(), tmp_path / "new")
    assert json.loads(file.read_text())["paces"]["own"]["item"] > 0


def test_no_room_for_a_row_is_told(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({**ONE_BY_ONE, "rewards": {"own": {"function": f"{__name__}:greedy"}}})
    with pytest.raises(InputError, match=r"no room for a single row, after measuring forward, trained, decode"):
        calibrate(settings, Console(), tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
