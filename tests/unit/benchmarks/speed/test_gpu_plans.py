"""The benchmarks that hold plans against a GPU, on small networks: all of them run, and write what plans read."""

import json
from pathlib import Path

import pytest
import typer
from branchgrpo.benchmarks.speed import gpu_calibration, gpu_memory, gpu_run
from branchgrpo.cluster.plan.calibration import DECODE, FORWARD, TRAINED, load_calibration


def test_a_calibration_is_written_that_plans_can_read(tmp_path: Path) -> None:
    gpu_calibration.main(out=tmp_path, tiny=True)
    paces = load_calibration(tmp_path / "calibration.json").paces
    assert paces.keys() == {FORWARD, TRAINED, DECODE, "hps"}
    assert all(pace.item and pace.item > 0 for pace in paces.values())


def test_every_call_is_compared_with_its_plan(tmp_path: Path) -> None:
    gpu_memory.main(out=tmp_path, tiny=True)
    calls = json.loads((tmp_path / "gpu_memory.json").read_text())["calls"]
    numbers = [(call, rows) for call, every in gpu_memory.ROWS.items() for rows in every]
    assert [(one["call"], one["rows"]) for one in calls] == 2 * numbers
    # A LoRA is planned in float32, and may be in the network's precision.
    assert all(0.85 < one["weights"] / one["weights_planned"] <= 1 for one in calls)
    assert all(one["weights"] == one["weights_planned"] for one in calls if "in full" in one["network"])
    assert all(0.5 < one["ratio"] < 1.5 for one in calls)


def test_a_run_is_compared_with_its_plan(tmp_path: Path) -> None:
    gpu_run.main(out=tmp_path, tiny=True)
    found = json.loads((tmp_path / "gpu_run.json").read_text())
    assert found["planned"].keys() == {"iteration", "rollout", "scoring", "learning", "GB"}
    assert found["planned"].keys() < found["run"].keys()
    # A window of four steps, with splits at the first two: each step has as many rows as nodes before it.
    assert found["run"]["rows trained"] == 1 + 2 + 4 + 4
    assert sum(found["run"][phase] for phase in ("rollout", "scoring", "learning")) <= found["run"]["iteration"]


def test_a_folder_that_is_not_the_benchmarks_stays(tmp_path: Path) -> None:
    kept = tmp_path / "gpu_run" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(typer.BadParameter, match="isn't this benchmark's"):
        gpu_run.main(out=tmp_path, tiny=True)
    assert kept.read_text() == "mine"
