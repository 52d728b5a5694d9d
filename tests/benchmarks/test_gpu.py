"""The benchmark for GPUs, on a small network: all of it runs, and counts what it should."""

import json
from pathlib import Path

import pytest
from branchgrpo.benchmarks import gpu


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("gpu")
    gpu.main(out=out, tiny=True, steps=6, rows=4, times=1, compiled=False, peak=1.0)
    return json.loads((out / "gpu.json").read_text())


def test_every_figure_is_there(written: dict) -> None:
    measured = written["eager"]["measured"]
    for name in ("tree", "tree, pruned", "mix", "sequential, one row per pass"):
        assert measured[f"iteration, {name}"] > 0
    for name in ("tree, batched", "tree, one row per pass", "sequential, batched", "mix, batched"):
        assert measured[f"rollout, {name}"] > 0
    assert set(written["eager"]["ratios"]) == {
        "rollout: sequential / tree, batched",
        "iteration: sequential, one row per pass / best",
        "forward: share of the peak",
    }


def test_a_gpu_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match="there is no GPU"):
        gpu.main(out=tmp_path, tiny=False, steps=6, rows=4, times=1, compiled=False, peak=1.0)
