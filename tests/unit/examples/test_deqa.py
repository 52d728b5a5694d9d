"""The example that scores as DeQA, over a small model that brings its own code as DeQA's folder does."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.proto.media import Media
from branchgrpo.reward_service.own_code import OwnScorer
from safetensors.torch import save_file

PATH = Path(__file__).parents[3] / "examples" / "deqa.py"
CODE = """
import numpy as np, torch
from transformers import PretrainedConfig, PreTrainedModel

class Config(PretrainedConfig):
    model_type = "small_deqa"

class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.grades = torch.nn.Linear(3, 5)
        self.post_init()

    def score(self, images):
        assert 0 < len(images) <= 8
        colours = torch.tensor(np.stack([np.asarray(image).mean(axis=(0, 1)) / 255 for image in images]))
        return torch.softmax(self.grades(colours.to(self.dtype)), -1) @ torch.tensor([5.0, 4, 3, 2, 1])
"""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights of a small model, whose folder the example finds."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modeling.py").write_text(CODE)
    classes = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "small_deqa", "auto_map": classes}))
    made = {"grades.weight": torch.randn(5, 3) * 4, "grades.bias": torch.randn(5)}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("DEQA_MODEL", str(folder))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return made


def test_the_example_rates_pictures_and_frames(weights: dict[str, torch.Tensor]) -> None:
    """By the code in the model's folder, in batches, and in their order."""
    spec = importlib.util.spec_from_file_location("deqa_example", PATH)
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scorer = OwnScorer("deqa", "examples/deqa.py", module.load())
    clips = np.random.default_rng(0).integers(0, 256, (3, 4, 2, 2, 3), np.uint8)
    colours = torch.tensor(clips.mean(axis=(2, 3)) / 255).float()
    chances = torch.softmax(colours @ weights["grades.weight"].T + weights["grades.bias"], -1)
    wanted = (chances * torch.arange(5.0, 0, -1)).sum(dim=-1)
    assert scorer(Media(clips), ["a"] * 3)["deqa"] == pytest.approx(wanted.mean(dim=1).numpy(), abs=1e-5)
    pictures = Media(clips.reshape(12, 2, 2, 3))
    assert scorer(pictures, ["a"] * 12)["deqa"] == pytest.approx(wanted.flatten().numpy(), abs=1e-5)
