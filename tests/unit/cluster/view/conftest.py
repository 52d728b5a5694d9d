"""Run folders as runs leave them, written by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.view.runs import Runs
from branchgrpo.cluster.view.server import create_app
from fastapi.testclient import TestClient

RECIPE = """
name: {name}
iterations: {iterations}
schedule: {{method: branch_grpo}}
rewards: {{ocr: {{weight: 1.0}}, ocr_exact: {{weight: 0.0}}}}
learner: {{clip_range: 0.01}}
policy: {{precision: float32}}
"""


def line(iteration: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl, as a run writes it."""
    reward = {"mean": 0.5, "std": 0.3, "min": 0.0, "max": 1.0}
    return {
        "iteration": iteration,
        "started": 1000.0 + 10 * iteration,
        "seconds": 10.0,
        "phase_seconds": {"rollout": 4.0, "scoring": 3.0, "learning": 2.5},
        "rewards": {"ocr": reward, "ocr_exact": reward},
        "diversity": 0.1,
        "leaves": 128,
        "left_out_trees": 0,
        "forward_passes": 100,
        "rows": 50,
        "edges": 60,
        "skipped_edges": 30,
        "pruned_edges": 10,
        "kl": 0.0,
        "logprob_abs_diff": 1e-7,
        "ratio_min": 0.99,
        "ratio_max": 1.01,
        "clip_fraction": 0.1,
        "gradient_norm": 0.2,
        "learning_rate": 2e-4,
        **changes,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder into `runs`."""

    def make(name: str = "one", iterations: int = 3, **changes: Any) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(RECIPE.format(name=folder.name, iterations=iterations))
        lines = [line(number, **changes) for number in range(1, iterations + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        evaluations = [
            {"iteration": 0, "ocr": 0.25, "ocr_exact": 0.125},
            {"iteration": 3, "ocr": 0.75, "ocr_exact": 0.5},
        ]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in evaluations))
        (folder / "state.json").write_text(
            json.dumps({"name": name, "state": "finished", "since": 2000.0, "iterations": iterations})
        )
        return folder

    return make


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A browser, so to speak, of the pages about `runs`."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    return TestClient(create_app(Runs(tmp_path / "runs")), base_url="http://127.0.0.1")
