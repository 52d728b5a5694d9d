"""`branchgrpo export`: the trained model of a run, for diffusers and for other tools."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from branchgrpo.cluster.commands.export import export
from branchgrpo.cluster.run.checkpoints import written
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import RunSettings
from branchgrpo.rollout_workers.policies.base import trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from support import COUNTING, Settings


def trained(settings: RunSettings) -> RunFolder:
    """A run with one checkpoint, whose weights are random."""
    policy = load_policy(settings.policy)
    if settings.learner.lora:
        policy.add_lora(settings.learner.lora)
    torch.manual_seed(3)
    weights = {name: p + 0.1 * torch.randn_like(p) for name, p in trainable(policy.network).items()}
    with RunFolder.create(settings) as folder:
        folder.append("metrics", {"iteration": 1})
        with written(folder.checkpoint(1)) as temporary:
            safetensors.torch.save_file(weights, temporary / "weights.safetensors")
    return folder


def test_a_lora_for_comfyui_goes_by_the_runs_name(run_settings: Settings, tmp_path: Path) -> None:
    run = trained(run_settings({"rewards": COUNTING, "learner.lora": {"rank": 2, "alpha": 6}, "name": "mine"}))
    number, (file,) = export(run.path, tmp_path / "out", "newest", ema=False, form="comfyui")
    assert (number, file) == (1, tmp_path / "out" / "mine.safetensors")
    assert list((tmp_path / "out").iterdir()) == [file]
    alphas = [v for name, v in safetensors.torch.load_file(file).items() if name.endswith(".alpha")]
    assert alphas
    assert all(alpha == 6 for alpha in alphas)


@pytest.mark.parametrize(
    ("changes", "form", "message"),
    [
        ({}, "comfyui", "--format is 'comfyui', which is for LoRAs, and this run trains all weights; use diffusers"),
        ({"learner.lora": {"rank": 2}}, "kohya", "--format is 'kohya', whose tools fuse layers"),
    ],
)
def test_a_form_that_the_model_cannot_have_is_refused(
    changes: dict[str, object], form: str, message: str, run_settings: Settings, tmp_path: Path
) -> None:
    run = trained(run_settings({"rewards": COUNTING, **changes}))
    with pytest.raises(InputError, match=message):
        export(run.path, tmp_path / "out", "newest", ema=False, form=form)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
