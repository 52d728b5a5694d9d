"""What the terminal tells of an iteration."""

from io import StringIO

import numpy as np
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.loop import IterationReport
from branchgrpo.proto.usage import Usage
from rich.console import Console


def told(usage: dict[str, Usage], utilisation: dict[str, float]) -> list[str]:
    """The parts of the line of an iteration that took 4 seconds."""
    report = IterationReport(7, {"ocr": np.array([0.25, 0.75])}, {"rollout": 2.0, "learning": 1.5}, 11, [], None)
    report.usage, report.utilisation = usage, utilisation
    written = StringIO()
    RunDisplay(Console(file=written)).iteration(report, 4.0)
    return [part.strip() for part in written.getvalue().split("|")]


def test_seconds_are_told_by_phase_of_wall_and_cpu() -> None:
    usage = {"rollout": Usage(2.0, 3.5), "learning": Usage(1.5, 1.25), "driver": Usage(4.0, 0.01)}
    assert told(usage, {}) == [
        "iteration    7  ocr 0.500",
        "4.0 s: rollout 2.0  learning 1.5",
        "CPU 4.8 s: rollout 3.5  learning 1.2",
    ]


def test_gpu_seconds_are_told_where_there_are_some() -> None:
    usage = {"rollout": Usage(2.0, 0.5, 1.75, 8.0), "scoring": Usage(2.0, 0.5), "learning": Usage(1.5, 0.25, 1.25, 4.0)}
    assert told(usage, {"rollout": 0.4, "learning": 0.51})[2:] == [
        "CPU 1.2 s: rollout 0.5  scoring 0.5  learning 0.2",
        "GPU 3.0 s: rollout 1.8  learning 1.2",
        "of the GPUs' peak rollout 40%  learning 51%",
    ]
