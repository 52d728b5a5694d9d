"""The trace of a whole run."""

from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.iteration_trace import read
from branchgrpo.cluster.train import train
from branchgrpo.proto.settings import LoggingSettings
from rich.console import Console
from support import Settings, follows


def test_a_run_in_one_process_is_traced_unless_told_not_to(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"iterations": 2, "evaluation.samples": 2})
    display = RunDisplay(Console(quiet=True))
    folder = train(settings, display)
    found = read(folder, 2)
    assert follows(found)
    line = RunFolder.open(folder).lines("metrics")[1]
    assert sum(one.attributes["rows"] for one in found.spans if one.name == "forward") == line["forward_passes"]
    assert {one.component for one in found.spans} == {"in_process"}
    assert 0 < found.seconds < line["seconds"] + 0.1
    run = RunFolder.open(folder)
    first = run.evaluation(run.lines("evaluations")[0])
    assert list(first.prompts) == [prompt for prompt in ("000", "003", "006") for _ in range(2)]
    pairs = (first.media.pictures / 255).reshape(3, 2, *first.media.pictures.shape[1:])
    expected = np.sqrt(pairs.var(axis=1, ddof=1).reshape(3, -1).mean(axis=1)).mean()
    assert first.means["diversity"] == pytest.approx(expected, rel=1e-9)
    silent = train(settings.model_copy(update={"name": "silent", "logging": LoggingSettings(trace=False)}), display)
    assert not (silent / "trace").exists()
