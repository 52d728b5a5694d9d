"""A study of two variants over the demo's recipe, and made-up folders of its runs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.study.file import Study, load_study
from branchgrpo.cluster.study.timing import FILE, timed_together, timing_name
from branchgrpo.cluster.study.trials import Trial
from branchgrpo.proto.yaml12 import write_yaml

FLAT = {"schedule": {"method": "dance_grpo", "steps": 16, "group": 16}, "advantage.normaliser": "group"}
PASSES, ROWS = {"flat": 100, "tree": 40}, {"flat": 90, "tree": 50}


@pytest.fixture
def study_in(tmp_path: Path) -> Callable[..., Study]:
    """Loads a study of the variants `flat` and `tree`, with replacements of its keys."""
    (tmp_path / "validation.txt").write_text("3111\n3222\n")

    def load(**changes: Any) -> Study:
        content: dict[str, Any] = {
            "base": "glyphs",
            "common": {"execution": "in_process", "evaluation.every": 1},
            "variants": {"flat": FLAT, "tree": {}},
            "seeds": [0, 1],
            "budget": {"iterations": 4},
            "reward": "ocr",
            "targets": [0.5],
            "baseline": "flat",
        }
        path = tmp_path / "small.yaml"
        path.write_text(write_yaml({**content, **changes}))
        return load_study(path, tmp_path / "out")

    return load


@pytest.fixture
def made_up() -> Callable[..., None]:
    """Writes the folder of a run that had these held-out rewards, before training and after each iteration."""

    def write(trial: Trial, rewards: Sequence[float], state: str = "finished", error: str | None = None) -> None:
        path = trial.folder.path
        (path / "checkpoints" / f"iteration-{len(rewards) - 1:06d}").mkdir(parents=True)
        metrics = [
            {
                "iteration": number,
                "forward_passes": PASSES.get(trial.variant, 1),
                "rows": ROWS.get(trial.variant, 1),
                "diversity": 0.5 / number,
                "seconds": 1.0,
                "phase_seconds": {"rollout": 1.0},
            }
            for number in range(1, len(rewards))
        ]
        evaluations = [{"iteration": number, "ocr": reward} for number, reward in enumerate(rewards)]
        for name, lines in (("metrics", metrics), ("evaluations", evaluations)):
            (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (path / "state.json").write_text(json.dumps({"state": state, "error": error}))

    return write


@pytest.fixture
def timed() -> Callable[..., None]:
    """Writes seconds per iteration of variants into the folder of a study."""

    def write(study: Study, **seconds: float) -> None:
        study.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "settings": timing_name(study.variants[variant][0].settings),
                "together": sorted(timed_together(study)),
                "seconds": each,
                "phase_seconds": {"rollout": 0.75 * each, "learning": 0.25 * each},
            }
            for variant, each in seconds.items()
        ]
        (study.folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write
