"""Seconds are measured at iterations that the runs of a study make."""

import json
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.study.file import load_study
from branchgrpo.cluster.study.measure import measure
from branchgrpo.cluster.study.timing import FILE, to_measure
from branchgrpo.proto.yaml12 import write_yaml
from support import COUNTING, Settings, recipe_in

PASSES = 4 * (1 + 2 * 2 + 2 * 4)
"""Forward passes of an iteration of four prompts: 5 steps with splits in two at 0 and 2."""


@pytest.mark.parametrize(
    ("budget", "measured"),
    [
        ({"iterations": 4}, [1, 3]),
        ({"forward_passes": 5 * PASSES - 1}, [1, 3]),
        ({"seconds": 9.0}, [1, 6]),  # how many there will be isn't known, so the recipe's number stands in
    ],
    ids=["iterations", "forward_passes", "seconds"],
)
def test_measured_iterations_are_spread_over_the_run(
    run_settings: Settings, budget: dict[str, Any], measured: list[int], tmp_path: Path
) -> None:
    recipe_in(tmp_path, run_settings({"name": "small", "iterations": 10, "rewards": COUNTING, "evaluation.every": 1}))
    content = {"base": "small.yaml", "variants": {"tree": {}}, "seeds": [0], "budget": budget}
    path = tmp_path / "study.yaml"
    path.write_text(write_yaml({**content, "reward": "counting", "baseline": "tree", "timing_rounds": 2}))
    study = load_study(path, tmp_path / "out")
    measure(study, to_measure(study))
    assert [json.loads(line)["iteration"] for line in (study.folder / FILE).read_text().splitlines()] == measured
