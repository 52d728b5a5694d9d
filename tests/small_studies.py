"""A study of small runs, for tests that run it."""

from pathlib import Path
from typing import Any

from branchgrpo.proto.yaml12 import write_yaml
from ray._private.utils import get_num_cpus
from support import Settings, recipe_in

FLAT = {"schedule": {"method": "dance_grpo", "steps": 5, "group": 4}, "advantage.normaliser": "group"}
HELD = """
import time
from pathlib import Path


def score(media, prompts):
    while Path(__file__).with_name("hold").exists():
        time.sleep(0.05)
    return media.reshape(len(media), -1).std(axis=1)
"""
"""A module with a reward that waits as long as there is a file `hold` beside it."""


def small_study(folder: Path, run_settings: Settings, variants: dict[str, Any], iterations: int) -> Path:
    """The file of a study, to be run in its folder. Its runs come one after the other, and wait where there is a file
    `hold`; the first variant is the baseline."""
    (folder / "held.py").write_text(HELD)
    rewards, evaluation = {"spread": {"function": "held:score"}}, {"prompts": 2, "every": 1}
    recipe_in(folder, run_settings({"rewards": rewards, "name": "small", "evaluation": evaluation}))
    content = {
        "base": "small.yaml",
        "variants": variants,
        "seeds": [0],
        "budget": {"iterations": iterations},
        "reward": "spread",
        "targets": [-1e9, 1e9],
        "baseline": next(iter(variants)),
        "timing_rounds": 1,
        "resources": {"CPU": get_num_cpus()},
    }
    path = folder / "study.yaml"
    path.write_text(write_yaml(content))
    return path
