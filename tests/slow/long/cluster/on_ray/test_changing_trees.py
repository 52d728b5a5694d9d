"""Runs on Ray whose trees change with the iterations learn what runs in one process learn, bit by bit."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.run.folder import RunFolder
from ray_runs import BASE, assert_same_trees
from support import Settings, assert_bit_equal, command, recipe_in, weights


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": {"method": "tree_grpo", "steps": 6, "window": 2}},
        {"learner.keep_graph": True, "learner.updates_per_iteration": 1, "placement": "colocated"},
    ],
    ids=["a window drawn anew", "kept graphs"],
)
def test_what_changes_with_iterations_is_the_same_on_ray(
    changes: dict[str, Any], settings_in: Settings, tmp_path: Path, head: str
) -> None:
    saved = []
    for execution in ("in_process", "ray"):
        settings = settings_in(
            tmp_path, {**BASE, **changes, "name": execution, "execution": execution, "iterations": 3}
        )
        train = command("train", recipe_in(tmp_path, settings), "--address", head)
        subprocess.run(train, check=True, capture_output=True)
        run = settings.runs / execution
        lines = RunFolder(run).lines("metrics")
        figures = [(line["forward_passes"], line["rewards"], line["logprob_abs_diff"]) for line in lines]
        saved.append((weights(run, 3), figures, run))
    assert_bit_equal(saved[0][0], saved[1][0])
    assert saved[0][1] == saved[1][1]
    assert_same_trees(saved[0][2], saved[1][2])
