"""What the main job must show: the shipped policy scribbles over half of its words, and learns not to."""

import json
import subprocess
from pathlib import Path

from support import RECIPES, command

RECIPE = RECIPES / "glyphs.yaml"


def test_the_demo_teaches_the_policy_to_write(tmp_path: Path) -> None:
    train = command("train", RECIPE, f"runs={tmp_path}")
    done = subprocess.run(train, capture_output=True, text=True, check=True)
    summary = json.loads((tmp_path / "glyphs" / "summary.json").read_text())
    assert summary["evaluation_prompts"] == 150
    assert 0.45 <= summary["before"]["ocr_exact"] <= 0.65
    assert summary["after"]["ocr_exact"] >= 0.93
    assert summary["after"]["ocr"] > summary["before"]["ocr"]
    output = done.stdout.replace("\n", "")
    for name in ("before_after.png", "reward_curve.png", "export", "summary.json"):
        assert str(tmp_path / "glyphs" / name) in output
        assert (tmp_path / "glyphs" / name).exists()
