"""The benchmark for GPUs, on a small network: all of it runs, and counts what it should."""

import json
from pathlib import Path

import pytest
import typer
from branchgrpo.benchmarks.speed import gpu

SMALL = {"tiny": True, "steps": 6, "rows": 4, "times": 1, "compiled": False, "peak": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu")
    gpu.main(out=out, **SMALL)
    return out


def test_every_figure_is_there(folder: Path) -> None:
    written = json.loads((folder / "gpu.json").read_text())["eager"]
    for name in ("tree", "tree, pruned", "mix", "sequential", "sequential, one row per pass"):
        assert {"iteration", "rollout", "scores", "update"} < written["seconds"][name].keys()
    assert written["seconds"]["tree, one row per pass"]["rollout"] > 0
    assert written["seconds"]["batch of 4"]["forward"] > 0
    assert set(written["ratios"]) == {
        "forward: share of the peak",
        "rollout: sequential / tree",
        "rollout: sequential / tree, one row per pass",
        "iteration: sequential / best",
        "iteration: sequential, one row per pass / best",
    }


def test_rows_and_log_probabilities_are_those_of_the_schedules(folder: Path) -> None:
    measured = json.loads((folder / "gpu.json").read_text())["eager"]["seconds"]
    # Six steps, the last one not trained: splits at 0 and 1 give 1 + 2 + 3 * 4 rows, a group of four 4 * 5.
    assert measured["tree"]["rows trained"] == 15
    assert measured["sequential"]["rows trained"] == measured["sequential, one row per pass"]["rows trained"] == 20
    assert all(measured[name]["log-probabilities differ by"] < 1e-5 for name in ("tree", "mix", "sequential"))


def test_a_second_call_goes_on_where_the_first_was_stopped(folder: Path, tmp_path: Path) -> None:
    whole = json.loads((folder / "gpu.json").read_text())
    stopped = {**whole, "eager": {"seconds": {k: v for k, v in whole["eager"]["seconds"].items() if k != "mix"}}}
    (tmp_path / "gpu.json").write_text(json.dumps(stopped))
    gpu.main(out=tmp_path, **SMALL)
    found = json.loads((tmp_path / "gpu.json").read_text())["eager"]
    assert found["seconds"].keys() == whole["eager"]["seconds"].keys()
    for name, figures in stopped["eager"]["seconds"].items():
        assert found["seconds"][name] == figures
    assert found["ratios"].keys() == whole["eager"]["ratios"].keys()


def test_figures_of_other_options_are_not_taken(folder: Path, tmp_path: Path) -> None:
    other = {**json.loads((folder / "gpu.json").read_text()), "steps": 20, "eager": {"seconds": {"tree": {}}}}
    (tmp_path / "gpu.json").write_text(json.dumps(other))
    gpu.main(out=tmp_path, **SMALL)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["steps"] == 6
    assert found["eager"]["seconds"]["tree"]


def test_a_gpu_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match="there is no GPU"):
        gpu.main(out=tmp_path, **{**SMALL, "tiny": False})
