"""`branchgrpo calibrate`: what reward models are shown, and what ends it."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from branchgrpo.cluster.commands.calibrate import calibrate
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompts import fields_of
from rich.console import Console
from support import Settings

SMALL = {"rollout.max_batch_rows": 1, "rollout.decode_batch": 1, "learner.rows_per_micro_batch": 1}


def by_word(pictures: npt.NDArray[np.uint8], prompts: list[str]) -> list[float]:
    """Reads a field of each prompt."""
    return [float(len(fields_of(prompt)["word"])) for prompt in prompts]


def greedy(pictures: npt.NDArray[np.uint8], prompts: list[str]) -> list[float]:
    """Takes more memory than there is."""
    return torch.empty(2**60).tolist()


def test_rewards_get_a_prompt_of_the_run(run_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text(json.dumps({"prompt": "a sign", "word": "seven"}) + "\n")
    own = {"prompts.train": str(tmp_path / "words.jsonl"), "rewards": {"own": {"function": f"{__name__}:by_word"}}}
    file = calibrate(run_settings({**SMALL, **own, "pools.rewards.own.batch_pictures": 1}), Console(), tmp_path / "new")
    assert json.loads(file.read_text())["paces"]["own"]["item"] > 0


def test_no_room_for_a_row_is_told(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({**SMALL, "rewards": {"own": {"function": f"{__name__}:greedy"}}})
    with pytest.raises(
        InputError, match=r"no room for a single row, after measuring \['forward', 'trained', 'decode'\]"
    ):
        calibrate(settings, Console(), tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_is_measured_for_a_file_that_exists(kind: str, run_settings: Settings, tmp_path: Path) -> None:
    """Nor loaded: the policy isn't there."""
    path = tmp_path / "there"
    path.touch() if kind == "file" else path.mkdir()
    with pytest.raises(InputError, match="there exists, and isn't overwritten"):
        calibrate(run_settings({"policy.pretrained": "/nowhere"}), Console(), path)
