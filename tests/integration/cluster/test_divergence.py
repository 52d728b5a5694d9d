"""A run that diverges, in one process and on Ray."""

import re

import pytest
import torch
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from branchgrpo.proto.errors import Diverged
from support import Settings, weights


@pytest.mark.parametrize("execution", ["in_process", "ray"])
def test_a_run_that_diverges_keeps_its_last_whole_checkpoint(
    run_settings: Settings, execution: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue("head") if execution == "ray" else None
    settings = run_settings(
        {
            "execution": execution,
            "pools": {"learner": {"cpus": 0.2}, "rollout_workers": {"cpus": 0.2}, "rewards": {"ocr": {"cpus": 0.2}}},
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
