"""Runs as a user handles them: stopped by Ctrl-C, and two at once."""

import signal
import subprocess
from pathlib import Path

import pytest
from operated_runs import CHANGES, stop_and_resume, undisturbed
from support import Settings, Weights, assert_bit_equal, command, recipe_in, weights


@pytest.fixture(scope="module")
def plain(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return undisturbed(settings_in, tmp_path_factory.mktemp("plain"))


@pytest.mark.timeout(900)
def test_a_run_is_stopped_by_ctrl_c_and_resumed(plain: Weights, run_settings: Settings, tmp_path: Path) -> None:
    stop_and_resume(signal.SIGINT, plain, run_settings, tmp_path)


@pytest.mark.timeout(600)
def test_two_runs_on_one_cluster_do_not_touch_each_other(
    plain: Weights, run_settings: Settings, tmp_path: Path, head: str
) -> None:
    recipe = recipe_in(tmp_path, run_settings({**CHANGES, "execution": "ray"}))
    names = ("one", "two")
    runs = [
        subprocess.Popen(
            command("train", recipe, f"name={name}", "--address", head),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in names
    ]
    for process in runs:
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 0, out[-3000:]
    for name in names:
        assert_bit_equal(weights(run_settings().runs / name, 6), plain)
