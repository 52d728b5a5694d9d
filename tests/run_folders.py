"""Run folders as runs leave them, written by hand."""

import json
from pathlib import Path
from typing import Any

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


def write_run(folder: Path, iterations: int = 3, **changes: Any) -> Path:
    """A run folder whose iterations are all alike but for `changes`, with evaluations after iterations 0 and 3."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(name=json.dumps(folder.name), iterations=iterations))
    lines = [line(number, **changes) for number in range(1, iterations + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    means = [(0, 0.25, 0.125), (3, 0.75, 0.5)]
    evaluations = [{"iteration": number, "ocr": ocr, "ocr_exact": exact} for number, ocr, exact in means]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in evaluations))
    state = {"name": folder.name, "state": "finished", "since": 2000.0, "iterations": iterations}
    (folder / "state.json").write_text(json.dumps(state))
    return folder
