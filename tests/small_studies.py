"""A study of small runs, for tests that run it."""

from pathlib import Path
from typing import Any

from branchgrpo.proto.yaml12 import write_yaml
from ray._private.utils import get_num_cpus
from support import Settings, recipe_in

FLAT = {"schedule": {"method": "dance_grpo", "steps": 5, "group": 4}, "advantage.normaliser": "group"}
REWARD = "jpeg_incompressibility"


def small_study(folder: Path, run_settings: Settings, variants: dict[str, Any], iterations: int) -> Path:
    """The file of a study in a folder. Its runs come one after the other; the first variant is the baseline."""
    evaluation = {"prompts": 2, "every": 1}
    recipe_in(folder, run_settings({"rewards": {REWARD: {"weight": 1.0}}, "name": "small", "evaluation": evaluation}))
    content = {
        "base": "small.yaml",
        "variants": variants,
        "seeds": [0],
        "budget": {"iterations": iterations},
        "reward": REWARD,
        "targets": [-1e9, 1e9],
        "baseline": next(iter(variants)),
        "timing_rounds": 1,
        "resources": {"CPU": get_num_cpus()},
    }
    path = folder / "study.yaml"
    path.write_text(write_yaml(content))
    return path
