"""A run that diverges, for tests in one process and on Ray."""

import re
from typing import Any

import pytest
import torch
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from branchgrpo.proto.errors import Diverged
from support import Settings, weights


def assert_its_last_whole_checkpoint_is_kept(
    run_settings: Settings, changes: dict[str, Any], address: str | None = None
) -> None:
    settings = run_settings(
        {
            **changes,
            "iterations": 9,
            "prompts.held_out": None,
            "learner.optimizer.learning_rate": 1e8,
            "checkpoint.keep": 20,
        }
    )
    with pytest.raises(Diverged) as told:
        train(settings, RunDisplay(), address=address)
    folder = RunFolder.open(settings.runs / settings.name)
    assert "isn't finite" in str(told.value)
    assert "Ray" not in str(told.value)
    assert "\n" not in str(told.value)
    # What is told to go back to comes before the weights from which no state came; else it is the newest.
    assert re.search(
        r"the checkpoint of iteration (\d+) is whole; continue with smaller steps, such as: .* --resume"
        r"( --iteration \1)? learner.optimizer.learning_rate=1e\+07$|no checkpoint comes before these weights; .* "
        r"--iteration 0 learner.optimizer.learning_rate=1e\+07$",
        str(told.value),
    )
    for iteration in folder.checkpoints():
        assert all(torch.isfinite(value).all() for value in weights(folder.path, iteration).values())
    assert len(folder.lines("metrics")) == folder.done
