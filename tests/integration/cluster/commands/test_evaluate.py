"""Rewards that evaluations alone ask for."""

import json

import pytest
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from branchgrpo.proto.errors import InputError
from rich.console import Console
from support import Settings


def test_evaluations_alone_score_what_is_left_to_them(run_settings: Settings) -> None:
    changes = {
        "iterations": 1,
        "rewards": {"jpeg_compressibility": {}, "shade": {"function": "support:shade", "weight": 0.0}},
        "evaluation.rewards": ["shade"],
        "schedule.splits": {0: 2},
    }
    folder = RunFolder(train(run_settings(changes), RunDisplay(Console(quiet=True))))
    (line,) = folder.lines("metrics")
    assert line["rewards"].keys() == {"jpeg_compressibility"}
    assert [{"jpeg_compressibility", "shade"} <= line.keys() for line in folder.lines("evaluations")] == [True, True]
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["before"].keys() == {"jpeg_compressibility", "shade"}
    for wrong, has in ((["nothing"], "shade"), (["jpeg_compressibility"], "shade")):
        with pytest.raises(InputError, match=rf"evaluation.rewards has '{wrong[0]}'.*weight 0 \({has}\)"):
            run_settings({**changes, "evaluation.rewards": wrong})
