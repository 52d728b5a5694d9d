"""Adapters of the user's own in a run on Ray."""

import shutil
import subprocess
from pathlib import Path

import own_adapters
import pytest
from branchgrpo.proto.recipe import save_recipe
from support import COUNTING, LITTLE, Settings, command


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ("Encodes", " raised NameError: name 'undefined' is not defined ({file}, line 17)"),
        ("Flawed", " raised OSError: no such model ({file}, line 12)"),
        ("Decodes", " raised Odd: can't travel ({file}, line 27)"),
        ("Flat", ": Flat.decode returned a tensor of torch.float32, "),
    ],
)
def test_a_run_on_ray_ends_with_it_at_its_first_failure(
    adapter: str, told: str, run_settings: Settings, tmp_path: Path
) -> None:
    file = shutil.copy(own_adapters.__file__, tmp_path)
    changes = {
        "execution": "ray",
        "policy.adapter": f"own_adapters:{adapter}",
        "rewards": COUNTING,
        "prompts.held_out": None,
        "pools": {"rollout_workers": LITTLE, "learner": LITTLE, "rewards": {"counting": LITTLE}},
    }
    recipe = save_recipe(run_settings(changes), tmp_path / "recipe")
    done = subprocess.run(command("train", recipe), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    beginning = told.format(file=file)
    assert done.stderr.startswith(f"error: policy.adapter 'own_adapters:{adapter}'{beginning}"), done.stderr
    assert done.stderr.count("Traceback") == (adapter != "Flat"), done.stderr
    assert "ray::" not in done.stderr
    assert "own_adapters.py" not in done.stdout  # told once
