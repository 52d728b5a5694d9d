"""Runs that take turns do the same work, and each is told beside the first."""

import json
from pathlib import Path

from branchgrpo.benchmarks.speed import attention
from branchgrpo.benchmarks.support.in_turns import compare_in_process, table
from support import COUNTING, Settings

PHASES = {"rollout", "scoring", "learning", "all", "wall"}


def test_every_way_is_told_beside_the_first(run_settings: Settings) -> None:
    settings = run_settings({"rewards": COUNTING})
    found = compare_in_process({"one": settings, "two": settings}, rounds=1)
    assert found["first iteration, seconds"].keys() == {"one", "two"}
    rows = found["seconds after it"]
    assert rows.keys() == PHASES
    for figures in rows.values():
        assert figures["two / one"] == figures["two"] / figures["one"]
    assert table(found, "two runs").row_count == len(PHASES) + 1


def test_attention_is_compared_on_a_small_tree(tmp_path: Path) -> None:
    small = ["prompts.per_iteration=2", "learner.window_trees=1", "schedule={steps: 4, splits: {0: 2}, eta: 0.7}"]
    attention.main(out=tmp_path, rounds=1, kernels=["native", "_native_math"], setting=small)
    report = json.loads((tmp_path / "attention.json").read_text())
    assert report["benchmark"] == "attention"
    assert report["seconds after it"]["learning"].keys() == {"native", "_native_math", "_native_math / native"}
